//! One binary: the contract that every layer keeps, a story file for each pattern, and the conformance vectors.

mod support;

mod adaptive;
mod alloc;
mod backoff;
mod bad_input;
mod bodies;
mod budget;
mod circuit_breaker;
mod circuit_breaker_more;
mod concurrency_limit;
mod contract;
mod deadline;
mod grpc;
mod guide;
mod hazards;
mod hedge;
mod keyed;
mod late;
mod loopback;
mod observe;
mod policy;
mod replay;
mod respond;
mod retry;
mod shown;
mod shutdown;
mod simulation;
mod storm;
mod testing;
mod timeout;
mod ui;
mod unwinding;
mod vectors;
mod web;
mod wire;
