//! With tracing's feature `log` and no subscriber, what this crate tells goes to the `log` crate. A binary of its own, for a
//! process has one logger.

use std::sync::Mutex;

use buttress::CircuitBreaker;

static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Hears;

impl log::Log for Hears {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target() == "buttress" {
            HEARD.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn transitions_and_rejections_are_told_to_the_log_crate() {
    log::set_logger(&Hears).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let breaker = CircuitBreaker::builder().build().unwrap();
    breaker.force_open();
    breaker.call(async { Ok::<(), ()>(()) }).await.unwrap_err();
    let heard = HEARD.lock().unwrap();
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0].starts_with("WARN") && heard[1].starts_with("DEBUG call rejected"), "{heard:?}");
}
