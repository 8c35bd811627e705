//! How numbers are written.

/// A time, or a rate: to a tenth where that says something.
pub fn short(figure: f64) -> String {
    if figure.abs() < 1_000.0 { format!("{figure:.1}") } else { grouped(figure.round() as u64) }
}

/// To ours: finer where a peer is the better.
pub fn ratio(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.2}×") } else { format!("{}×", short(ratio)) }
}

/// With commas between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
