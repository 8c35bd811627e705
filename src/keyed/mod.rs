//! [`Keyed`]: a circuit breaker, a limit or a whole policy for each host or tenant.
//!
//! **Use it** where one client reaches many services that fail one by one (hosts, replicas, shards), or one server serves
//! many that must not take each other's share (tenants, API keys). **Do not use it** for a handful that is known
//! when the process starts: give each a handle of its own. Nor for a quota that must hold to the letter: a limit that is
//! idle may be forgotten and made anew, which loses nothing of a limit of calls *at once*, but would of a sum.
//!
//! # What is kept, and what is forgotten
//!
//! At most [`max_keys`](KeyedBuilder::max_keys) at any time, over all threads. As long as there is room, nothing is
//! forgotten. Then a newcomer takes the place of one that was not asked for since it was last considered (second
//! chance, an LRU in rough), **if that one is at rest**:
//!
//! | | at rest |
//! | --- | --- |
//! | [`CircuitBreaker`](crate::CircuitBreaker) | in the state that it was built in: closed (or in shadow mode, if built so). An open, half-open or forced circuit is never forgotten |
//! | [`ConcurrencyLimit`](crate::ConcurrencyLimit) | nothing is in flight, nobody waits; and one that [adapts](crate::ConcurrencyLimitBuilder::adaptive) holds nothing back and is not below one |
//! | [`Throttle`](crate::Throttle) | nothing is to be refused, or all that speaks against the service has slid out of its window |
//! | [`Policy`](crate::Policy) | its breaker, its throttle and its limit are; a limit or a throttle that was [built alone](crate::PolicyBuilder::concurrency_limit) is not asked, as it lives on |
//! | [`Retry`](crate::Retry), [`Timeout`](crate::Timeout) | always |
//!
//! and nobody else holds it: no clone, no permit, no service made of it, no call. So a limit can never be doubled by
//! being forgotten between [`get`](Keyed::get) and its use; and a handle of which somebody keeps a clone, or that
//! several keys share, is never forgotten. What goes with a handle that is forgotten is what its window has counted, a
//! retry's budget, and a limit's [`resize`](crate::ConcurrencyLimit::resize).
//!
//! There is no task and no timer: room is made by whoever needs it.
//!
//! # When there is no room
//!
//! If nothing can be forgotten (a newcomer looks at 384 that are busy and no further), all newcomers share **one**
//! handle, the [`overflow`](KeyedBuilder::overflow), until there is room. They are then not kept apart from
//! each other; the keys that are kept are not touched. It is logged at WARN, once a minute at most, and
//! [counted](Keyed::overflowed). An open circuit that nobody asks again stays open and keeps its place: if keys come from
//! strangers, let more than a call or two be needed to open one
//! ([`min_calls`](crate::CircuitBreakerBuilder::min_calls)), and [look](Keyed::active) for those to
//! [`reset`](crate::CircuitBreaker::reset).
//!
//! # What runs where
//!
//! Keys live in shards, hashed by the standard library's random state; a hit locks its shard for the time of a comparison,
//! and allocates nothing. Under this lock run the key's `Eq` (and `Clone`, in [`entries`](Keyed::entries) and
//! [`active`](Keyed::active)) and nothing else of yours: handles are made, and what is forgotten is dropped, outside of
//! it.

mod layer;
mod per_key;
mod table;

use std::{
    borrow::Borrow,
    fmt,
    hash::Hash,
    marker::PhantomData,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::warn;

pub use layer::{ByKey, KeyedLayer, KeyedService};
pub use per_key::{PerKey, Settings};
use table::Table;

use crate::{
    ConfigError,
    clock::{nanos, now, since},
    config::Checks,
};

const MAX_KEYS: usize = 4_096;
const MOST: usize = 1 << 24;
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

/// One `H` for each key: one host's open circuit leaves the others alone.
///
/// The state belongs to the value: clones of it, its layers and their services share it. See the [module](self) for
/// what is kept and what is forgotten.
///
/// ```
/// use buttress::{CircuitBreaker, Keyed, circuit_breaker::State};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::ConfigError> {
/// // All alike: the settings are checked here, once.
/// let hosts: Keyed<String, CircuitBreaker> = Keyed::each(CircuitBreaker::builder().consecutive_failures(2)).build()?;
///
/// for _ in 0..2 {
///     let _ = hosts.get("down.example").call(async { Err::<(), _>("connection refused") }).await;
/// }
/// assert_eq!(hosts.get("down.example").state(), State::Open);
/// assert_eq!(hosts.get("up.example").call(async { Ok::<_, &str>(1) }).await, Ok(1));
/// # Ok(()) }
/// ```
///
/// As a layer, here of a whole policy for each host:
///
/// ```
/// use buttress::{CircuitBreaker, Keyed, LiftLayer, Policy};
/// use std::time::Duration;
/// use tower::ServiceBuilder;
/// # struct Request { host: String }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), buttress::ConfigError> {
/// let each = Policy::plain("hosts").circuit_breaker(CircuitBreaker::builder()).timeout(Duration::from_secs(1));
/// let hosts = Keyed::each(each).max_keys(1_000).build()?;
/// let client = ServiceBuilder::new()
///     .layer(hosts.layer(|request: &Request| request.host.clone()))
///     .layer(LiftLayer)
///     .service_fn(|request: Request| async move { Ok::<_, std::io::Error>(request.host.len()) });
/// assert_eq!(client.send(Request { host: "example.org".into() }).await.unwrap(), 11);
/// # Ok(()) }
/// ```
pub struct Keyed<K, H: PerKey> {
    inner: Arc<Inner<K, H>>,
}

struct Inner<K, H: PerKey> {
    table: Table<K, H>,
    make: Make<K, H>,
    overflow: OnceLock<H>,
    overflowed: AtomicU64,
    warned: Warned,
}

type Make<K, H> = Box<dyn Fn(&K) -> H + Send + Sync>;

impl<K, H: PerKey> Keyed<K, H> {
    /// All alike. Its [`build`](KeyedBuilder::build) checks these settings too, so that no call finds them wrong.
    ///
    /// A closure in the settings is shared by all keys, a listener too, and all carry the same name: to tell which key a
    /// circuit belongs to, use [`builder`](Self::builder).
    pub fn each(settings: impl Settings<Handle = H>) -> KeyedBuilder<K, H> {
        KeyedBuilder::new(settings.clone().make().map(|checked| {
            let make: Make<K, H> = Box::new(move |_| match settings.clone().make() {
                Ok(handle) => handle,
                Err(error) => unreachable!("these settings were built before: {error}"),
            });
            (make, Some(checked))
        }))
    }

    /// Each as `make` says, which is run once for a key that is new, by the call that comes with it, outside of any lock.
    ///
    /// If two calls come with it at once, both run it and one of the two handles is used. If it panics, so does that call,
    /// and the next one tries again. It may [`get`](Self::get) other keys, but never its own.
    ///
    /// It has no way to fail, as there is nobody to tell: check what is the same for all before, once, as here.
    ///
    /// ```
    /// use buttress::{CircuitBreaker, Keyed};
    ///
    /// let settings = CircuitBreaker::builder().name("hosts").failure_rate(0.3);
    /// settings.clone().build()?; // so that it cannot fail below
    /// let hosts = Keyed::builder(move |host: &String| {
    ///     let host = host.clone();
    ///     let named = settings.clone().on_transition(move |t| println!("{host}: {:?} -> {:?}", t.from, t.to));
    ///     named.build().expect("checked above")
    /// });
    /// let hosts = hosts.build()?;
    /// hosts.get("example.org").force_open(); // example.org: Closed -> ForcedOpen
    /// # Ok::<(), buttress::ConfigError>(())
    /// ```
    pub fn builder(make: impl Fn(&K) -> H + Send + Sync + 'static) -> KeyedBuilder<K, H> {
        KeyedBuilder::new(Ok((Box::new(make), None)))
    }

    /// How many keys are kept, with those that are being made at this moment. Never more than
    /// [`max_keys`](Self::max_keys).
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.table.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many keys are kept at most.
    #[must_use]
    pub fn max_keys(&self) -> usize {
        self.inner.table.max()
    }

    /// How often a key found no room, and was given the [overflow](KeyedBuilder::overflow).
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.inner.overflowed.load(Relaxed)
    }

    /// All keys and their handles, in no order; for metrics and for admin pages. While the list lives, none of
    /// these handles can be forgotten.
    #[must_use]
    pub fn entries(&self) -> Vec<(K, H)>
    where
        K: Clone,
    {
        self.inner.table.collect(|key, handle| Some((key.clone(), handle.share())))
    }

    /// Those [that are not at rest](self#what-is-kept-and-what-is-forgotten), whoever holds them: the open circuits, the
    /// limits with calls in flight.
    ///
    /// ```
    /// # use buttress::{CircuitBreaker, Keyed};
    /// let hosts = Keyed::<String, _>::each(CircuitBreaker::builder()).build()?;
    /// hosts.get("up.example");
    /// hosts.get("down.example").force_open();
    /// for (host, breaker) in hosts.active() {
    ///     println!("{host}: {:?}", breaker.state()); // down.example: ForcedOpen
    ///     # assert_eq!(host, "down.example");
    /// }
    /// # Ok::<(), buttress::ConfigError>(())
    /// ```
    #[must_use]
    pub fn active(&self) -> Vec<(K, H)>
    where
        K: Clone,
    {
        self.inner.table.collect(|key, handle| (!handle.is_settled()).then(|| (key.clone(), handle.share())))
    }
}

impl<K: Hash + Eq, H: PerKey> Keyed<K, H> {
    /// The handle of this key, made if it is new. Never fails and never waits; if there is no room, it is the
    /// [overflow](KeyedBuilder::overflow).
    ///
    /// Ask anew for each call. A handle that is kept is never forgotten, and takes its place for as long.
    ///
    /// # Panics
    /// If the closure given to [`builder`](Self::builder), or the key's `Hash`, `Eq` or `Clone` does. Nothing is broken by
    /// it.
    #[must_use]
    pub fn get<Q>(&self, key: &Q) -> H
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let hash = self.inner.table.hash(key);
        match self.inner.table.find(hash, key, true) {
            Some(handle) => handle,
            None => self.inner.newcomer(hash, || key.to_owned()),
        }
    }

    /// As [`get`](Self::get), with a key that need not be `Clone`.
    #[inline]
    fn get_owned(&self, key: K) -> H {
        let hash = self.inner.table.hash(&key);
        match self.inner.table.find(hash, &key, true) {
            Some(handle) => handle,
            None => self.inner.newcomer(hash, || key),
        }
    }

    /// The handle of this key if there is one. It does not count as a use.
    #[must_use]
    pub fn peek<Q>(&self, key: &Q) -> Option<H>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.inner.table.find(self.inner.table.hash(key), key, false)
    }
}

impl<K: Eq, H: PerKey> Inner<K, H> {
    #[cold]
    fn newcomer(&self, hash: u64, key: impl FnOnce() -> K) -> H {
        // Before the handle is made, so that nothing is made in vain.
        let Some(place) = self.table.place() else { return self.overflow(key) };
        let key = key();
        let handle = (self.make)(&key);
        place.fill(hash, key, handle)
    }

    #[cold]
    fn overflow(&self, key: impl FnOnce() -> K) -> H {
        let overflowed = self.overflowed.fetch_add(1, Relaxed) + 1;
        if self.warned.may_warn(now()) {
            warn!(
                target: "buttress",
                max_keys = self.table.max(),
                overflowed,
                "no room for a new key, as nothing can be forgotten: newcomers share one handle"
            );
        }
        if let Some(handle) = self.overflow.get() {
            return handle.share();
        }
        // Not in `get_or_init`, where a closure that comes here again would hang.
        let made = (self.make)(&key());
        self.overflow.get_or_init(|| made).share()
    }
}

impl<K, H: PerKey> Clone for Keyed<K, H> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K, H: PerKey> fmt::Debug for Keyed<K, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed")
            .field("keys", &self.len())
            .field("max_keys", &self.max_keys())
            .field("overflowed", &self.overflowed())
            .finish_non_exhaustive()
    }
}

/// When it was last warned.
struct Warned {
    base: Instant,
    /// Nanoseconds since the base at which the next warning may come.
    next: AtomicU64,
}

impl Warned {
    fn may_warn(&self, now: Instant) -> bool {
        let (now, next) = (since(self.base, now), self.next.load(Relaxed));
        let after = now.saturating_add(nanos(BETWEEN_WARNINGS));
        // Of those that come at once, one.
        now >= next && self.next.compare_exchange(next, after, Relaxed, Relaxed).is_ok()
    }
}

/// Builds a [`Keyed`].
///
/// | setting | default | because |
/// | --- | --- | --- |
/// | [`max_keys`](Self::max_keys) | 4096 | more than most processes call or serve. A breaker takes 2 KB on two cores and 14 KB on 32 or more, a whole policy 4 and 27: 8 to 110 MB when full |
/// | [`overflow`](Self::overflow) | made for the first key that finds no room | it is bounded like the others |
///
/// ```
/// use buttress::{ConcurrencyLimit, Keyed};
/// let error = Keyed::<u64, _>::each(ConcurrencyLimit::builder()).max_keys(0).build().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "invalid configuration: keyed.max_keys = 0: must be between 1 and 2^24; \
///      concurrency_limit.max_in_flight = not set: must be set: it has no default",
/// );
/// ```
#[must_use]
pub struct KeyedBuilder<K, H: PerKey> {
    make: Result<(Make<K, H>, Option<H>), ConfigError>,
    max_keys: usize,
    overflow: Option<H>,
    key: PhantomData<fn(K)>,
}

impl<K, H: PerKey> KeyedBuilder<K, H> {
    fn new(make: Result<(Make<K, H>, Option<H>), ConfigError>) -> Self {
        Self { make, max_keys: MAX_KEYS, overflow: None, key: PhantomData }
    }

    /// How many keys are kept at most, by all threads together.
    ///
    /// Make it larger than the number of keys that are in use at once. It is exact: with as many keys as this, each has
    /// a handle of its own.
    pub fn max_keys(mut self, keys: usize) -> Self {
        self.max_keys = keys;
        self
    }

    /// What keys share that find [no room](self#when-there-is-no-room). By default it is made like the others; with
    /// [`builder`](Keyed::builder), for the first key that needs it, and then kept.
    pub fn overflow(mut self, handle: H) -> Self {
        self.overflow = Some(handle);
        self
    }

    /// The map, empty. It needs no runtime.
    ///
    /// # Errors
    /// `max_keys` if it is out of its range, and every such setting that was given to [`each`](Keyed::each).
    pub fn build(self) -> Result<Keyed<K, H>, ConfigError> {
        let mut checks = Checks::new("keyed");
        checks.count("max_keys", self.max_keys, MOST, "must be between 1 and 2^24");
        let made = self.make.map_err(|error| checks.adopt(error));
        checks.finish()?;
        let Ok((make, checked)) = made else { unreachable!("what was refused is among the problems") };
        let overflow = self.overflow.or(checked).map_or_else(OnceLock::new, OnceLock::from);
        let warned = Warned { base: now(), next: AtomicU64::new(0) };
        let table = Table::new(self.max_keys);
        Ok(Keyed { inner: Arc::new(Inner { table, make, overflow, overflowed: AtomicU64::new(0), warned }) })
    }
}

impl<K, H: PerKey> fmt::Debug for KeyedBuilder<K, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedBuilder")
            .field("max_keys", &self.max_keys)
            .field("overflow", &self.overflow)
            .finish_non_exhaustive()
    }
}
