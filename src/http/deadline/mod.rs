//! A deadline on the wire: from the headers of a request into the current [`Deadline`], and from there into the headers
//! of the next one.
//!
//! What goes over the wire is the time that is left, never a point in time: no two machines' clocks need to agree.

mod read;
mod write;

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request};

pub use read::{ReadDeadlineLayer, ReadDeadlineService};
pub use write::{WriteDeadlineFuture, WriteDeadlineLayer, WriteDeadlineService};

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The units of `grpc-timeout`, from the finest.
const UNITS: [(u8, Duration); 6] = [
    (b'n', Duration::from_nanos(1)),
    (b'u', Duration::from_micros(1)),
    (b'm', Duration::from_millis(1)),
    (b'S', Duration::from_secs(1)),
    (b'M', Duration::from_secs(60)),
    (b'H', Duration::from_secs(3600)),
];

/// What eight digits hold.
const MOST_UNITS: u32 = 99_999_999;

/// One to eight digits and a unit. `None` for everything else.
fn parse_grpc(value: &[u8]) -> Option<Duration> {
    let (letter, digits) = value.split_last()?;
    let (_, unit) = UNITS.iter().find(|(unit, _)| unit == letter)?;
    let count = u32::try_from(parse_number(digits)?).ok()?;
    (digits.len() <= 8).then(|| *unit * count)
}

/// In the finest unit that eight digits have room for, rounded down: the peer never believes to have more.
fn format_grpc(left: Duration) -> HeaderValue {
    let counted = UNITS.iter().map(|(letter, unit)| (left.as_nanos() / unit.as_nanos(), *letter));
    let (count, letter) = counted
        .into_iter()
        .find(|(count, _)| *count <= u128::from(MOST_UNITS))
        .unwrap_or((u128::from(MOST_UNITS), b'H'));
    let value = format!("{count}{}", char::from(letter));
    HeaderValue::try_from(value).expect("digits and a letter are a header's value")
}

/// Digits only; more than fit are for ever.
fn parse_millis(value: &[u8]) -> Option<Duration> {
    parse_number(value).map(Duration::from_millis)
}

/// Rounded down, but never to zero, which some proxies take for "no limit".
fn format_millis(left: Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1))
}

fn parse_number(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits.then(|| {
        digits.iter().fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    })
}

/// The shortest time that any value of this header says.
fn shortest(headers: &HeaderMap, name: &HeaderName, parse: fn(&[u8]) -> Option<Duration>) -> Option<Duration> {
    headers.get_all(name).iter().filter_map(|value| parse(value.as_bytes())).min()
}

/// A request that has headers: an `http::Request`, or with feature `reqwest` a `reqwest::Request`.
///
/// ```
/// use buttress::http::HasHeaders;
/// /// What a client of yours sends.
/// struct Query { headers: http::HeaderMap }
///
/// impl HasHeaders for Query {
///     fn headers(&self) -> &http::HeaderMap { &self.headers }
///     fn headers_mut(&mut self) -> &mut http::HeaderMap { &mut self.headers }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no request with headers",
    note = "an `http::Request` is one, and with buttress' feature `reqwest` a `reqwest::Request`; for a type of your own \
            implement `buttress::http::HasHeaders`"
)]
pub trait HasHeaders {
    /// The headers.
    fn headers(&self) -> &HeaderMap;

    /// The headers, to be changed.
    fn headers_mut(&mut self) -> &mut HeaderMap;
}

impl<B> HasHeaders for Request<B> {
    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }
}

#[cfg(feature = "reqwest")]
impl HasHeaders for reqwest::Request {
    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn wire(value: &HeaderValue) -> &str {
        value.to_str().unwrap()
    }

    #[test]
    fn a_grpc_timeout_is_one_to_eight_digits_and_a_unit() {
        let ns = Duration::from_nanos;
        for (value, time) in [
            ("1H", Some(ns(3_600_000_000_000))),
            ("1M", Some(ns(60_000_000_000))),
            ("2S", Some(ns(2_000_000_000))),
            ("30m", Some(ns(30_000_000))),
            ("400u", Some(ns(400_000))),
            ("5n", Some(ns(5))),
            ("0S", Some(ns(0))),
            ("00000007S", Some(ns(7_000_000_000))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("000000007S", None),
            ("123456789n", None),
            ("99999999999999999999n", None),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("5h", None),
            ("-5S", None),
            ("+5S", None),
            ("1.5S", None),
            ("5 S", None),
            (" 5S", None),
            ("5S ", None),
            ("٣S", None),
        ] {
            assert_eq!(parse_grpc(value.as_bytes()), time, "{value:?}");
        }
    }

    #[test]
    fn milliseconds_are_digits_and_more_than_fit_are_for_ever() {
        for (value, time) in [
            ("0", Some(0)),
            ("0250", Some(250)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", Some(u64::MAX)),
            ("99999999999999999999999999", Some(u64::MAX)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("1e3", None),
            ("250ms", None),
            (" 250", None),
        ] {
            assert_eq!(parse_millis(value.as_bytes()), time.map(Duration::from_millis), "{value:?}");
        }
    }

    #[test]
    fn a_time_is_written_in_the_finest_unit_that_eight_digits_hold() {
        let ns = Duration::from_nanos;
        for (left, value) in [
            (ns(1), "1n"),
            (ns(99_999_999), "99999999n"),
            (ns(100_000_999), "100000u"),
            (Duration::from_secs(5), "5000000u"),
            (ns(99_999_999_999), "99999999u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::from_secs(6_000_000_000), "1666666H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(wire(&format_grpc(left)), value, "{left:?}");
        }
        assert_eq!(wire(&format_millis(ns(1))), "1");
        assert_eq!(wire(&format_millis(ns(2_999_999))), "2");
        assert_eq!(wire(&format_millis(Duration::MAX)), "18446744073709551615");
    }

    /// All magnitudes are as likely.
    fn times() -> impl Strategy<Value = Duration> {
        (any::<u64>(), 0..64_u32, 0..1_000_000_000_u32).prop_map(|(secs, shift, nanos)| {
            let secs = secs >> shift;
            if secs == 0 { Duration::from_nanos(u64::from(nanos >> (shift % 30))) } else { Duration::new(secs, nanos) }
        })
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_never_more_and_hardly_less(left in times()) {
            let read = parse_grpc(format_grpc(left).as_bytes()).unwrap();
            prop_assert!(read <= left);
            // Six digits are left of any unit but the finest, where nothing is lost; and 11,000 years are the most.
            let most = Duration::from_secs(99_999_999 * 3600);
            prop_assert!(left.min(most) - read <= left / 100_000 || read == most, "{left:?} as {read:?}");
            prop_assert!(read > Duration::ZERO || left == Duration::ZERO);

            let read = parse_millis(format_millis(left).as_bytes()).unwrap();
            prop_assert!(read <= left.max(Duration::from_millis(1)));
            prop_assert!(left.saturating_sub(read) < Duration::from_millis(1) || read == Duration::from_millis(u64::MAX));
        }

        #[test]
        fn no_bytes_make_reading_panic(value in vec(any::<u8>(), 0..24)) {
            let told = parse_grpc(&value);
            prop_assert!(told.is_none() || (2..=9).contains(&value.len()));
            let _ = parse_millis(&value);
        }

        #[test]
        fn whatever_eight_digits_and_a_unit_say_is_read(count in 0..=MOST_UNITS, unit in 0..UNITS.len()) {
            let (letter, unit) = UNITS[unit];
            let value = format!("{count}{}", char::from(letter));
            prop_assert_eq!(parse_grpc(value.as_bytes()), Some(unit * count));
        }
    }
}
