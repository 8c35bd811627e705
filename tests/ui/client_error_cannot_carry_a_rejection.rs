use buttress::Policy;
use tower::Layer;

fn fetch(client: reqwest::Client, request: reqwest::Request) {
    let policy = Policy::reqwest("payments").build().unwrap();
    let _ = policy.layer().layer(client).send(request);
}

fn main() {
    let _ = fetch;
}
