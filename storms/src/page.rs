//! The page: what is computed stands between its marks.

/// Puts a text between the marks of that name; none if the page has no such marks.
pub fn put(page: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::put;

    #[test]
    fn what_was_between_the_marks_is_replaced_and_all_else_stays() {
        let page = "before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter";
        assert_eq!(put(page, "a", "new\n").as_deref(), Some("before\n<!-- a:begin -->\nnew\n<!-- a:end -->\nafter"));
        assert_eq!(put(page, "b", "new\n"), None);
    }
}
