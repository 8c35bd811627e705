//! tonic: its `Status` as an error of ours, and services that keep their names.

use std::sync::{Arc, OnceLock};

use tonic::{Code, Status, server::NamedService};

use super::{
    ByGrpcStatus, ReadDeadlineService, RespondService,
    grpc::{PUSHBACK, Pushback, judge, read_pushback},
    respond::{grpc_status, pushback},
};
use crate::{Classify, Guarded, Outcome, Reason, Reject, Rejection, Verdict, shutdown::InFlightService};

fn code(reason: Reason) -> Code {
    Code::from(i32::from(grpc_status(reason)))
}

/// UNAVAILABLE for an open circuit and a shutdown, RESOURCE_EXHAUSTED for an overload, DEADLINE_EXCEEDED for what was cut
/// off; `grpc-retry-pushback-ms` if there is a time to come back; the [`Rejection`] as its source.
impl<Res> Reject<Res> for Status {
    type Cause = Status;

    fn reject(rejection: Rejection) -> Result<Res, Self> {
        let mut status = Status::new(code(rejection.reason()), rejection.to_string());
        if let Some(after) = rejection.retry_after() {
            status.metadata_mut().insert(PUSHBACK, pushback(after).into());
        }
        status.set_source(Arc::new(rejection));
        Err(status)
    }

    fn inspect(outcome: &Result<Res, Self>) -> Outcome<'_, Res, Status> {
        match outcome {
            Ok(res) => Outcome::Ok(res),
            Err(status) => Rejection::find(status).map_or(Outcome::Err(status), Outcome::Rejected),
        }
    }
}

/// Over calls of a generated client.
impl<T> Classify<tonic::Response<T>, Status> for ByGrpcStatus {
    const RETRIES_THROTTLED: bool = false;

    fn classify(&self, outcome: Result<&tonic::Response<T>, &Status>) -> Verdict {
        let Err(status) = outcome else { return Verdict::Success };
        let hint = status.metadata().get(PUSHBACK);
        judge(status.code().into(), hint.map_or(Pushback::Nothing, |value| read_pushback(value.as_bytes())))
    }
}

impl<S: NamedService, H> NamedService for Guarded<S, H> {
    const NAME: &'static str = S::NAME;
}

impl<S: NamedService, P> NamedService for InFlightService<S, P> {
    const NAME: &'static str = S::NAME;
}

impl<S: NamedService, B> NamedService for RespondService<S, B> {
    const NAME: &'static str = S::NAME;
}

impl<S: NamedService> NamedService for ReadDeadlineService<S> {
    const NAME: &'static str = S::NAME;
}

/// What tonic finds when it looks among the sources of an error for a status, as its clients do with the errors of the
/// channel that they are built on: the right code instead of UNKNOWN.
pub(crate) fn status_of(reason: Reason) -> &'static Status {
    static UNAVAILABLE: OnceLock<Status> = OnceLock::new();
    static EXHAUSTED: OnceLock<Status> = OnceLock::new();
    static DEADLINE: OnceLock<Status> = OnceLock::new();
    let code = code(reason);
    let status = match code {
        Code::Unavailable => &UNAVAILABLE,
        Code::ResourceExhausted => &EXHAUSTED,
        _ => &DEADLINE,
    };
    status.get_or_init(|| Status::new(code, code.description()))
}
