use loom::{model, sync::atomic::AtomicU32, thread};

use super::*;

#[test]
fn whoever_hears_ready_sees_what_was_made_ready() {
    model(|| {
        let handle = crate::shutdown::handle_of_a_model();
        handle.ready();
        let (condition, cache) = (handle.condition("cache"), Arc::new(AtomicU32::new(0)));
        let warms = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                condition.down();
                cache.store(1, Relaxed);
                condition.up();
                condition
            })
        };
        if handle.is_ready() {
            assert_eq!(cache.load(Relaxed), 1, "what was made ready");
        }
        drop(warms.join().unwrap());
        assert!(handle.is_ready());
    });
}
