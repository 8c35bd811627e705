use std::{sync::atomic::AtomicUsize, task::Poll};

use loom::{model, thread};

use super::*;
use crate::{
    shutdown::handle_of_a_model,
    sync::models::{Woken, interrupted},
};

fn limit(max_in_flight: usize, max_queue: usize) -> Arc<Shared> {
    Arc::new(Shared::new("limit", max_in_flight, max_queue, None, Line::default(), None))
}

fn queued(limit: &Shared) -> u32 {
    match limit.enqueue(Asks::default()) {
        Ok(Turn::Later(ticket)) => ticket as u32,
        _ => panic!("there is no room, and a queue"),
    }
}

/// One poll, with the waker that it leaves.
struct Waits(Arc<Woken>, Poll<Result<(), Rejection>>);

impl Waits {
    fn new(limit: &Shared, ticket: u32) -> Self {
        let (woken, waker) = Woken::new();
        let polled = match limit.poll_queued(ticket, None, &mut Context::from_waker(&waker)) {
            Queued::Granted(_) => Poll::Ready(Ok(())),
            Queued::Refused(rejection) => Poll::Ready(Err(rejection)),
            Queued::Waits(_) => Poll::Pending,
        };
        Self(woken, polled)
    }

    /// Once all is quiet and there is room: whether it has the permit, or was woken to take it.
    fn ends(self, limit: &Shared, ticket: u32) -> Result<(), Rejection> {
        let Self(woken, polled) = self;
        match polled {
            Poll::Ready(ready) => ready,
            Poll::Pending => {
                assert!(woken.is_so(), "nobody sleeps while there is room");
                match Waits::new(limit, ticket).1 {
                    Poll::Ready(ready) => ready,
                    Poll::Pending => panic!("who was woken has the permit"),
                }
            }
        }
    }
}

// HAZARD: L1
#[test]
fn never_more_are_in_flight_than_may_be() {
    for (max, others) in [(1, 1), (2, 2)] {
        // Three threads that try again and again have too many.
        interrupted(3, move || {
            // Of the standard library: it only looks on. Relaxed, as loom runs all threads of a model on one.
            let (limit, inside) = (limit(max, 0), Arc::new(AtomicUsize::new(0)));
            let come = move |limit: &Shared, inside: &AtomicUsize| {
                if limit.try_acquire() {
                    assert!(inside.fetch_add(1, Relaxed) < max, "no more than the limit");
                    assert!(limit.in_flight() <= max, "no more than the limit");
                    inside.fetch_sub(1, Relaxed);
                    limit.release();
                }
            };
            let others: Vec<_> = std::iter::repeat_with(|| {
                let (limit, inside) = (Arc::clone(&limit), Arc::clone(&inside));
                thread::spawn(move || come(&limit, &inside))
            })
            .take(others)
            .collect();
            come(&limit, &inside);
            others.into_iter().for_each(|other| other.join().unwrap());
            assert!(limit.is_idle());
        });
    }
}

/// As with a lock, holders of the only permit need no read-modify-write; with and without a queue, whose empty line is
/// passed by another way.
fn the_next_sees(max_queue: usize) {
    model(move || {
        let (limit, work) = (limit(1, max_queue), Arc::new(AtomicU32::new(0)));
        let come = |limit: &Shared, work: &AtomicU32| {
            let admitted = match limit.enqueue(Asks::default()) {
                Ok(Turn::Now(_)) => true,
                Ok(Turn::Later(ticket)) => {
                    let polled = Waits::new(limit, ticket as u32).1;
                    if polled.is_pending() {
                        limit.leave_queue(ticket as u32);
                    }
                    polled.is_ready()
                }
                Err(_) => false,
            };
            if admitted {
                work.store(work.load(Relaxed) + 1, Relaxed);
                limit.release();
            }
            u32::from(admitted)
        };
        let other = {
            let (limit, work) = (Arc::clone(&limit), Arc::clone(&work));
            thread::spawn(move || come(&limit, &work))
        };
        let admitted = come(&limit, &work) + other.join().unwrap();
        assert_eq!(work.load(Relaxed), admitted, "what a holder wrote the next one sees");
        assert!(limit.is_idle());
    });
}

#[test]
fn what_a_holder_wrote_the_next_one_sees() {
    the_next_sees(0);
}

#[test]
fn what_a_holder_wrote_the_next_one_in_line_sees() {
    the_next_sees(1);
}

// HAZARD: L7
#[test]
fn after_a_resize_down_the_one_granted_sees_all_that_went() {
    model(|| {
        let (limit, work) = (limit(2, 1), Arc::new([AtomicU32::new(0), AtomicU32::new(0)]));
        assert!(limit.try_acquire() && limit.try_acquire());
        let ticket = queued(&limit);
        limit.resize(1);
        let holders = [0, 1].map(|holder| {
            let (limit, work) = (Arc::clone(&limit), Arc::clone(&work));
            thread::spawn(move || {
                work[holder].store(1, Relaxed);
                limit.release();
            })
        });
        let waits = Waits::new(&limit, ticket);
        if waits.1.is_ready() {
            assert!(work.iter().all(|done| done.load(Relaxed) == 1), "room was made by both");
        }
        holders.into_iter().for_each(|holder| holder.join().unwrap());
        waits.ends(&limit, ticket).unwrap();
        assert_eq!(limit.in_flight(), 1, "one is granted");
        limit.release();
        assert!(limit.is_idle());
    });
}

#[test]
fn whoever_lines_up_while_a_permit_is_given_back_gets_it() {
    model(|| {
        let limit = limit(1, 1);
        assert!(limit.try_acquire());
        let holder = {
            let limit = Arc::clone(&limit);
            thread::spawn(move || limit.release())
        };
        match limit.enqueue(Asks::default()) {
            Ok(Turn::Now(_)) => holder.join().unwrap(),
            Ok(Turn::Later(ticket)) => {
                let waits = Waits::new(&limit, ticket as u32);
                holder.join().unwrap();
                waits.ends(&limit, ticket as u32).unwrap();
            }
            Err(refused) => panic!("{refused}"),
        }
        limit.release();
        assert!(limit.is_idle());
    });
}

// HAZARD: L6
#[test]
fn a_permit_granted_to_whoever_leaves_goes_to_the_next() {
    model(|| {
        let limit = limit(1, 2);
        assert!(limit.try_acquire());
        let (leaves, stays) = (queued(&limit), queued(&limit));
        let waits = Waits::new(&limit, stays);
        let holder = {
            let limit = Arc::clone(&limit);
            thread::spawn(move || limit.release())
        };
        limit.leave_queue(leaves);
        holder.join().unwrap();
        waits.ends(&limit, stays).unwrap();
        assert_eq!(limit.in_flight(), 1, "no permit is lost, and none is made");
        limit.release();
        assert!(limit.is_idle());
    });
}

// HAZARD: L7
#[test]
fn whoever_lines_up_during_a_resize_up_is_let_in() {
    model(|| {
        let limit = limit(1, 1);
        assert!(limit.try_acquire());
        let resizes = {
            let limit = Arc::clone(&limit);
            thread::spawn(move || limit.resize(2))
        };
        if let Ok(Turn::Later(ticket)) = limit.enqueue(Asks::default()) {
            let waits = Waits::new(&limit, ticket as u32);
            resizes.join().unwrap();
            waits.ends(&limit, ticket as u32).unwrap();
        } else {
            resizes.join().unwrap();
        }
        assert_eq!(limit.in_flight(), 2);
    });
}

// HAZARD: L9
#[test]
fn nobody_passes_whoever_waits() {
    model(|| {
        let limit = limit(1, 1);
        assert!(limit.try_acquire());
        let ticket = queued(&limit);
        let barges = {
            let limit = Arc::clone(&limit);
            thread::spawn(move || limit.try_acquire())
        };
        limit.release();
        assert!(!barges.join().unwrap(), "the permit was handed over");
        Waits::new(&limit, ticket).ends(&limit, ticket).unwrap();
    });
}

#[test]
fn whoever_waits_when_draining_begins_hears_of_it() {
    model(|| {
        let shutdown = handle_of_a_model();
        let limit = Arc::new(Shared::new("limit", 1, 1, None, Line::default(), Some(shutdown.clone())));
        limit.enlist();
        assert!(limit.try_acquire());
        let drains = thread::spawn(move || shutdown.trigger("model"));
        if let Ok(Turn::Later(ticket)) = limit.enqueue(Asks::default()) {
            let waits = Waits::new(&limit, ticket as u32);
            drains.join().unwrap();
            waits.ends(&limit, ticket as u32).unwrap_err();
        } else {
            drains.join().unwrap();
        }
        assert_eq!((limit.in_flight(), limit.waiting()), (1, 0));
    });
}
