use std::{fmt, io};

use buttress::{Policy, Verdict, classify::from_fn};
use tower::service_fn;

fn main() {
    let stock = service_fn(|id: u32| async move { Ok::<u32, io::Error>(id) });

    let by_another_error =
        from_fn(|outcome: Result<&u32, &fmt::Error>| outcome.map_or(Verdict::TRANSIENT, |_| Verdict::Success));
    let policy = Policy::plain("stock").classify(by_another_error).build().unwrap();
    let _ = policy.wrap(stock.clone()).send(1);

    let by_reference =
        |outcome: &Result<u32, io::Error>| if outcome.is_ok() { Verdict::Success } else { Verdict::TRANSIENT };
    let policy = Policy::plain("stock").classify(by_reference).build().unwrap();
    let _ = policy.wrap(stock).send(1);
}
