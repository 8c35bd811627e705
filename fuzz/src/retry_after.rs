//! `Retry-After`, whatever stands there, by a calendar of our own; and the verdict that goes with it.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use arbitrary::Arbitrary;
use buttress::{
    Classify, Verdict,
    http::{ByStatus, ByStatusAt, retry_after},
};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::RETRY_AFTER};

use crate::with;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    status: u16,
    /// Seconds since 1970.
    now: u32,
    says: Says,
    /// Around it.
    blanks: (u8, u8),
    raw: &'a [u8],
}

#[derive(Arbitrary, Debug)]
enum Says {
    Nothing,
    Raw,
    Seconds(u64),
    /// A moment, in one of the three forms of a date.
    Date(u64, Form),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Form {
    Usual,
    Rfc850,
    Asctime,
}

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const LONG_DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [(&str, u64); 12] = [
    ("Jan", 31),
    ("Feb", 28),
    ("Mar", 31),
    ("Apr", 30),
    ("May", 31),
    ("Jun", 30),
    ("Jul", 31),
    ("Aug", 31),
    ("Sep", 30),
    ("Oct", 31),
    ("Nov", 30),
    ("Dec", 31),
];

/// Counted on fingers, year by year and month by month.
fn date(secs: u64, form: Form) -> String {
    let (days, of_day) = (secs / 86_400, secs % 86_400);
    let time = format!("{:02}:{:02}:{:02}", of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let weekday = (days % 7) as usize;
    let leap = |year: u64| u64::from(year % 4 == 0 && year % 100 != 0 || year % 400 == 0);
    let (mut left, mut year) = (days, 1970);
    while left >= 365 + leap(year) {
        left -= 365 + leap(year);
        year += 1;
    }
    let mut months = MONTHS.iter().enumerate().map(|(i, (name, days))| (name, days + u64::from(i == 1) * leap(year)));
    let month = loop {
        let (name, days) = months.next().expect("twelve months hold a year");
        if left < days {
            break name;
        }
        left -= days;
    };
    let day = left + 1;
    match form {
        Form::Usual => format!("{}, {day:02} {month} {year:04} {time} GMT", DAYS[weekday]),
        Form::Rfc850 => format!("{}, {day:02}-{month}-{:02} {time} GMT", LONG_DAYS[weekday], year % 100),
        Form::Asctime => format!("{} {month} {day:2} {time} {year:04}", DAYS[weekday]),
    }
}

/// The last second of the year 9999.
const LAST: u64 = 253_402_300_799;

pub fn run(data: &[u8]) {
    with(data, |Input { status, now, says, blanks, raw }: Input| {
        let now = u64::from(now);
        // What is to be made of it, where that is known.
        let (text, expected) = match says {
            Says::Nothing => (None, Some(None)),
            Says::Raw => (Some(raw.to_vec()), None),
            Says::Seconds(secs) => (Some(secs.to_string().into_bytes()), Some(Some(secs))),
            Says::Date(secs, form) => {
                // A year in two digits is one of the hundred from 1970.
                let secs = secs % if let Form::Rfc850 = form { 36_525 * 86_400 } else { LAST + 1 };
                (Some(date(secs, form).into_bytes()), Some(Some(secs.saturating_sub(now))))
            }
        };
        let blank = |count: u8| vec![b' '; usize::from(count % 4)];
        let padded = text.map(|text| [blank(blanks.0), text, blank(blanks.1)].concat());
        let value = padded.and_then(|text| HeaderValue::from_bytes(&text).ok());
        let mut headers = HeaderMap::new();
        headers.extend(value.iter().map(|value| (RETRY_AFTER, value.clone())));

        let told = retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(now));
        let text = value.as_ref().map_or(&b""[..], |value| value.as_bytes().trim_ascii());
        if let Some(expected) = expected {
            assert_eq!(told, expected.map(Duration::from_secs), "{value:?}");
        } else if !text.is_empty() && text.iter().all(u8::is_ascii_digit) {
            let secs = text.iter().fold(0_u128, |secs, digit| (secs * 10 + u128::from(digit - b'0')).min(1 << 64));
            assert_eq!(told, Some(Duration::from_secs(u64::try_from(secs).unwrap_or(u64::MAX))), "{value:?}");
        } else {
            // A date, and no longer than to the end of the calendar.
            assert!(told.is_none_or(|told| told.as_secs() <= LAST && text.len() >= 24), "{value:?}: {told:?}");
        }

        let Ok(status) = StatusCode::from_u16(status % 1_000) else { return };
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        let retry_after = retry_after(response.headers(), SystemTime::UNIX_EPOCH);
        let expected = match status.as_u16() {
            429 => Verdict::Throttled { retry_after },
            503 if retry_after.is_some() => Verdict::Throttled { retry_after },
            501 | 505 => Verdict::Permanent,
            408 | 425 | 500..=599 => Verdict::Transient { retry_after },
            400..=499 => Verdict::Permanent,
            _ => Verdict::Success,
        };
        let outcome = Ok::<_, &Infallible>(&response);
        assert_eq!(ByStatusAt(|| SystemTime::UNIX_EPOCH).classify(outcome), expected, "{status}");
        // By the real clock there is as much time, or less; which it is not, is all the same.
        let by_the_clock = ByStatus.classify(outcome);
        assert_eq!(std::mem::discriminant(&by_the_clock), std::mem::discriminant(&expected), "{status}");
        assert!(by_the_clock.retry_after() <= expected.retry_after(), "{by_the_clock:?}, {expected:?}");
    });
}
