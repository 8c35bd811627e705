//! What the compiler says to whoever holds it wrong, and that it names the way out.
//!
//! A method of `tower::ServiceExt`, such as `oneshot`, hides all of these behind "its trait bounds were not satisfied";
//! the inherent `send`, and any bound on `Service`, shows them.

/// The wording is the compiler's, and lists what the features bring: record it anew with `TRYBUILD=overwrite`.
#[cfg(all(feature = "http", feature = "reqwest"))]
#[test]
fn compile_errors_name_the_way_out() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

/// So that a message recorded anew still does.
#[test]
fn the_recorded_messages_name_the_way_out() {
    let messages = [
        (
            include_str!("../ui/client_error_cannot_carry_a_rejection.stderr"),
            &["the error type `reqwest::Error` cannot carry a rejection", "use `policy.wrap(service)`", "LiftLayer"][..],
        ),
        (
            include_str!("../ui/string_error_cannot_carry_a_rejection.stderr"),
            &[
                "the error type `String` cannot carry a rejection",
                "`policy.wrap(service)`",
                "LiftLayer",
                "impl_reject!",
            ],
        ),
        (
            include_str!("../ui/request_cannot_be_cloned.stderr"),
            &["does not know how to repeat a `Upload`", "`Policy::plain` sends any request once", "`.repeat(|request|"],
        ),
        (
            include_str!("../ui/classifier_of_another_error.stderr"),
            &["beside the error `std::io::Error`", "the error is the service's own", "expected closure signature"],
        ),
        (include_str!("../ui/service_cannot_be_cloned.stderr"), &["annotating `Connection` with `#[derive(Clone)]`"]),
        (include_str!("../ui/policy_was_not_built.stderr"), &["expected `Policy`, found `PolicyBuilder`"]),
    ];
    for (message, ways_out) in messages {
        for way_out in ways_out {
            assert!(message.contains(way_out), "`{way_out}` is missing from\n{message}");
        }
    }
}
