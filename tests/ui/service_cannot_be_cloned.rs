use std::{
    future::{Ready, ready},
    io,
    task::{Context, Poll},
};

use buttress::CircuitBreaker;
use tower::{Layer, Service};

struct Connection;

impl Service<u32> for Connection {
    type Response = u32;
    type Error = io::Error;
    type Future = Ready<io::Result<u32>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, id: u32) -> Self::Future {
        ready(Ok(id))
    }
}

fn main() {
    let breaker = CircuitBreaker::builder().build().unwrap();
    let _ = breaker.layer().layer(Connection).send(1);
}
