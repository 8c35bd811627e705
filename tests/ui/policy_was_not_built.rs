use std::{io, time::Duration};

use buttress::Policy;

struct Client {
    policy: Policy,
}

fn main() {
    let policy = Policy::plain("stock").timeout(Duration::from_secs(1));
    let _ = policy.call(|| async { Ok::<u32, io::Error>(1) });
    let _ = Client { policy };
}
