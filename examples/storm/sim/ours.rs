//! The client with a policy of this crate, which has nothing set but how long its users wait.

use std::sync::Arc;

use buttress::{Error, Policy, PolicyBuilder, Reason, Verdict, classify};

use super::{
    contenders::Client,
    hosts::{Failure, Hosts},
    setup::{HINT, PATIENCE},
};

pub fn client(hosts: Hosts, seed: u64) -> Client {
    through(Policy::standard("server"), hosts, seed)
}

/// The same, with that policy.
pub fn through(policy: PolicyBuilder, hosts: Hosts, seed: u64) -> Client {
    let policy = policy.deadline(PATIENCE).classify(classify::from_fn(judge)).seed(seed).build();
    let policy = policy.expect("the settings are in range");
    Arc::new(move || {
        let (policy, hosts) = (policy.clone(), hosts.clone());
        Box::pin(async move { policy.call(|| hosts.clone().ask()).await.map_err(failure) })
    })
}

/// As by default, where no failure says when to come back.
fn judge(outcome: Result<&(), &Failure>) -> Verdict {
    match outcome {
        Ok(()) => Verdict::Success,
        Err(Failure::ComeBack) => Verdict::Transient { retry_after: Some(HINT) },
        Err(_) => Verdict::TRANSIENT,
    }
}

fn failure(error: Error<Failure>) -> Failure {
    match error {
        Error::Inner(failure) => failure,
        Error::Rejected(no) => match no.reason() {
            Reason::Timeout | Reason::DeadlineExceeded => Failure::TimedOut,
            _ => Failure::Held,
        },
    }
}
