use std::time::Duration;

use buttress::Timeout;
use tower::ServiceBuilder;

fn main() {
    let service = ServiceBuilder::new()
        .layer(Timeout::new(Duration::from_secs(1)).layer())
        .service_fn(|id: u32| async move { Err::<u32, String>(format!("no {id}")) });
    let _ = service.send(1);
}
