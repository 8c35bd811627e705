use std::fs::File;

use buttress::{Policy, Retry};
use tower::service_fn;

struct Upload(File);

fn send(upload: Upload) {
    let policy = Policy::cloned("storage").retry(Retry::constant(Default::default())).build().unwrap();
    let service = policy.wrap(service_fn(|upload: Upload| async move { upload.0.sync_all() }));
    let _ = service.send(upload);
}

fn main() {
    let _ = send;
}
