//! Whether to send calls here.

use std::{
    fmt,
    sync::{Arc, PoisonError},
};

use super::{Handle, State};
use crate::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering::*},
};

/// The conditions that a process has for being ready.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    all: Mutex<Vec<Arc<Named>>>,
}

#[derive(Debug)]
struct Named {
    name: &'static str,
    up: AtomicBool,
}

impl Conditions {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Named>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn down(&self) -> Vec<&'static str> {
        // Acquire: whoever hears "ready" sees what was made ready.
        self.lock().iter().filter(|named| !named.up.load(Acquire)).map(|named| named.name).collect()
    }
}

/// Something that must be so before the process is ready: a warm cache, a connected database. Made by
/// [`Handle::condition`]; down at first.
///
/// It can go down again, and up. Dropped while it is up it is no condition any more; dropped while it is down it stays
/// so, as what should have brought it up has failed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let shutdown = buttress::Shutdown::builder().build()?;
/// let handle = shutdown.handle();
/// let cache = handle.condition("cache");
/// handle.ready();
/// assert!(!handle.is_ready());
/// cache.up();
/// assert!(handle.is_ready());
/// # Ok(()) }
/// ```
#[must_use = "dropped while it is down, it keeps the process from ever being ready"]
pub struct Condition {
    handle: Handle,
    named: Arc<Named>,
}

impl Condition {
    pub(super) fn new(handle: Handle, name: &'static str) -> Self {
        let named = Arc::new(Named { name, up: AtomicBool::new(false) });
        handle.shared.conditions.lock().push(Arc::clone(&named));
        Self { handle, named }
    }

    /// It is so.
    pub fn up(&self) {
        // Release: pairs with the load in `Conditions::down`.
        self.named.up.store(true, Release);
    }

    /// It is not so any more.
    pub fn down(&self) {
        // Relaxed: nobody goes on from what is down.
        self.named.up.store(false, Relaxed);
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        if self.named.up.load(Relaxed) {
            self.handle.shared.conditions.lock().retain(|other| !Arc::ptr_eq(other, &self.named));
        }
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.named.fmt(f)
    }
}

impl Handle {
    /// A condition for being ready; its name is in the answer for as long as it is down.
    pub fn condition(&self, name: &'static str) -> Condition {
        Condition::new(self.clone(), name)
    }

    /// Whether to send calls here: from [`ready`](Self::ready) until draining begins, while all
    /// [conditions](Self::condition) are up.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.unready().is_none()
    }

    /// Why not.
    fn unready(&self) -> Option<String> {
        match self.state() {
            State::Running => {
                let down = self.shared.conditions.down();
                (!down.is_empty()).then(|| format!("waiting for {}", down.join(", ")))
            }
            state => Some(state.as_str().to_owned()),
        }
    }

    /// A handler for the readiness probe, such as axum's `get(handle.readiness())`: 200 while the process
    /// [is ready](Self::is_ready), else 503 with the reason. It turns to 503 before anything is refused.
    ///
    /// Keep its route outside of the [in-flight layer](Self::in_flight_layer), or exempt.
    #[cfg(feature = "http")]
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn readiness(
        &self,
    ) -> impl Fn() -> std::future::Ready<http::Response<String>> + Clone + Send + Sync + use<> + 'static {
        let handle = self.clone();
        move || {
            let (status, text) = match handle.unready() {
                None => (http::StatusCode::OK, "ready".to_owned()),
                Some(why) => (http::StatusCode::SERVICE_UNAVAILABLE, why),
            };
            let mut response = http::Response::new(text);
            *response.status_mut() = status;
            let no_store = http::HeaderValue::from_static("no-store");
            response.headers_mut().insert(http::header::CACHE_CONTROL, no_store);
            std::future::ready(response)
        }
    }
}

#[cfg(all(test, buttress_loom))]
mod models;
