//! The standard library's counted references, as far as the models use them: with its orderings, on loom's atomics, as
//! loom has no `Weak`, and counts an `Arc` without letting a count be seen late.

use std::{ops::Deref, sync};

use super::atomic::{AtomicUsize, Ordering::*, fence};

pub(crate) struct Arc<T> {
    value: sync::Arc<T>,
    strong: sync::Arc<AtomicUsize>,
}

pub(crate) struct Weak<T>(Option<(sync::Weak<T>, sync::Arc<AtomicUsize>)>);

impl<T> Arc<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: sync::Arc::new(value), strong: sync::Arc::new(AtomicUsize::new(1)) }
    }

    pub(crate) fn strong_count(this: &Self) -> usize {
        this.strong.load(Relaxed)
    }

    pub(crate) fn downgrade(this: &Self) -> Weak<T> {
        Weak(Some((sync::Arc::downgrade(&this.value), sync::Arc::clone(&this.strong))))
    }
}

impl<T> Clone for Arc<T> {
    fn clone(&self) -> Self {
        self.strong.fetch_add(1, Relaxed);
        Self { value: sync::Arc::clone(&self.value), strong: sync::Arc::clone(&self.strong) }
    }
}

impl<T> Drop for Arc<T> {
    fn drop(&mut self) {
        // The value itself goes with the last `value`, after this.
        if self.strong.fetch_sub(1, Release) == 1 {
            fence(Acquire);
        }
    }
}

impl<T> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Weak<T> {
    pub(crate) fn upgrade(&self) -> Option<Arc<T>> {
        let (value, strong) = self.0.as_ref()?;
        strong.fetch_update(Acquire, Relaxed, |strong| (strong != 0).then(|| strong + 1)).ok()?;
        Some(Arc { value: value.upgrade().expect("it is counted"), strong: sync::Arc::clone(strong) })
    }
}

impl<T> Default for Weak<T> {
    fn default() -> Self {
        Self(None)
    }
}
