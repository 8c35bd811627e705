//! A body that is sent again: whatever comes of it, and however its attempts take turns, each sends the same bytes from the
//! start, or says that it cannot.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use arbitrary::Arbitrary;
use buttress::http::{BodyGone, Replay};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use crate::{Woken, with};

#[derive(Arbitrary, Debug)]
struct Input {
    cap: Cap,
    /// What the body says of its length.
    hint: Says,
    /// Whether it says that its last frame was the last.
    knows_its_end: bool,
    comes: Vec<Came>,
    events: Vec<Event>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Cap {
    Any(u8),
    /// For all of it, trailers included, or for a byte less.
    ForAll {
        but_one: bool,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Says {
    Nothing,
    TheTruth,
    /// So many bytes at least, which is not to be believed.
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Came {
    Data(u8),
    /// Nothing yet: somebody has to ask again.
    Pending,
    Trailers,
    Error,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Event {
    Poll {
        which: u8,
    },
    /// One reads all that it can.
    Drain {
        which: u8,
    },
    Again {
        of: u8,
    },
    TakeOver {
        which: u8,
    },
    Drop {
        which: u8,
    },
}

struct Source {
    comes: VecDeque<Came>,
    /// Of the next byte.
    next: u8,
    knows_its_end: bool,
    hint: SizeHint,
    ended: bool,
}

impl Body for Source {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        assert!(!self.ended, "polled after its end");
        match self.comes.pop_front() {
            Some(Came::Data(len)) => {
                let first = self.next;
                self.next = first.wrapping_add(len);
                let bytes = (0..len).map(|at| first.wrapping_add(at)).collect::<Vec<_>>();
                Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
            }
            Some(Came::Trailers) => {
                self.comes.clear();
                Poll::Ready(Some(Ok(Frame::trailers(trailers()))))
            }
            Some(Came::Pending) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Came::Error) => {
                self.ended = true;
                Poll::Ready(Some(Err("it broke off")))
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.knows_its_end && self.comes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("\"7\""))])
}

/// What trailers take of the cap.
const OF_TRAILERS: usize = "etag".len() + "\"7\"".len();

/// An attempt at the body.
struct Attempt {
    body: Replay<Source>,
    /// In what order they have the body.
    number: usize,
    /// Bytes that it has sent, and whether the trailers.
    sent: Vec<u8>,
    trailers: bool,
    begun: bool,
    over: Option<Over>,
    woken: Arc<Woken>,
    waits_since: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    Whole,
    Gone(BodyGone),
    Failed,
}

struct Story {
    cap: usize,
    attempts: Vec<Attempt>,
    numbers: usize,
    /// The highest number that has had the body.
    turn: usize,
    /// Bytes that have come from the source, and whether trailers have.
    came: usize,
    trailers: bool,
    failed: bool,
    /// All that it is to send, and whether that ends in trailers, or in an error.
    whole: usize,
    ends: Option<Came>,
}

impl Story {
    /// So many bytes, each one more than that before.
    fn is_prefix(&self, sent: &[u8]) -> bool {
        sent.len() <= self.whole && sent.iter().enumerate().all(|(at, byte)| *byte == at as u8)
    }

    fn poll(&mut self, index: usize) -> bool {
        let attempt = &mut self.attempts[index];
        if attempt.over.is_some() {
            return false;
        }
        let whole = attempt.body.is_whole();
        let waker = Waker::from(Arc::clone(&attempt.woken));
        let hint = attempt.body.size_hint();
        let polled = Pin::new(&mut attempt.body).poll_frame(&mut Context::from_waker(&waker));
        let may = attempt.number >= self.turn;
        if may {
            self.turn = attempt.number;
        }
        let first = !std::mem::replace(&mut attempt.begun, true);
        attempt.waits_since = None;
        match polled {
            Poll::Pending => {
                assert!(may, "another has the body");
                attempt.waits_since = Some(attempt.woken.times());
                return false;
            }
            Poll::Ready(Some(Ok(frame))) => {
                assert!(may, "another has the body");
                // One that has failed is sent as far as it was recorded, to whoever does not ask first.
                assert!(!first || whole || self.failed, "it began, and was not whole");
                match frame.into_data() {
                    Ok(data) => {
                        assert!(!attempt.trailers, "data after trailers");
                        let left = attempt.body.size_hint();
                        assert_eq!(left.lower(), hint.lower().saturating_sub(data.len() as u64));
                        attempt.sent.extend_from_slice(&data);
                    }
                    Err(frame) => {
                        assert_eq!(frame.into_trailers().ok(), Some(trailers()));
                        attempt.trailers = true;
                    }
                }
                self.came = self.came.max(attempt.sent.len());
                self.trailers |= attempt.trailers;
                if attempt.body.is_end_stream() {
                    attempt.over = Some(Over::Whole);
                }
            }
            Poll::Ready(None) => {
                attempt.over = Some(Over::Whole);
                assert!(may, "another has the body");
            }
            Poll::Ready(Some(Err(error))) => {
                let over = match error.downcast_ref() {
                    Some(gone) => Over::Gone(*gone),
                    None => {
                        assert_eq!(error.to_string(), "it broke off");
                        self.failed = true;
                        Over::Failed
                    }
                };
                match over {
                    Over::Gone(BodyGone::TakenOver) => assert!(!may, "nobody has taken it"),
                    Over::Gone(BodyGone::Failed) => assert!(may && self.failed),
                    Over::Gone(_) => assert!(may && !whole && attempt.sent.is_empty(), "it was whole"),
                    _ => assert!(may),
                }
                attempt.over = Some(over);
            }
        }
        let attempt = &self.attempts[index];
        assert!(self.is_prefix(&attempt.sent), "{:?}", attempt.sent);
        if attempt.over == Some(Over::Whole) {
            assert_eq!(attempt.sent.len(), self.whole, "it ended, and was not all");
            assert_eq!(attempt.trailers, matches!(self.ends, Some(Came::Trailers)));
            assert!(!matches!(self.ends, Some(Came::Error)), "it ended, and did not fail");
        }
        attempt.over.is_none()
    }

    fn step(&mut self, event: Event) {
        let any = |which: u8| usize::from(which).checked_rem(self.attempts.len());
        match event {
            Event::Poll { which } => {
                if let Some(index) = any(which) {
                    self.poll(index);
                }
            }
            Event::Drain { which } => {
                if let Some(index) = any(which) {
                    while self.poll(index) {}
                }
            }
            Event::Again { of } => {
                if let Some(index) = any(of) {
                    let body = self.attempts[index].body.again();
                    self.add(body);
                }
            }
            Event::TakeOver { which } => {
                if let Some(index) = any(which) {
                    let attempt = &mut self.attempts[index];
                    let whole = attempt.body.is_whole();
                    assert_eq!(attempt.body.take_over(), whole, "what is whole can be taken over");
                    if whole && !attempt.body.is_end_stream() {
                        self.numbers += 1;
                        attempt.number = self.numbers;
                        self.turn = self.numbers;
                    }
                }
            }
            Event::Drop { which } => {
                if let Some(index) = any(which) {
                    self.attempts.swap_remove(index);
                }
            }
        }
        self.agree();
    }

    fn add(&mut self, body: Replay<Source>) {
        self.numbers += 1;
        self.attempts.push(Attempt {
            over: body.is_end_stream().then_some(Over::Whole),
            body,
            number: self.numbers,
            sent: Vec::new(),
            trailers: false,
            begun: false,
            woken: Arc::default(),
            waits_since: None,
        });
    }

    fn agree(&self) {
        let gone_by = self.came + if self.trailers { OF_TRAILERS } else { 0 };
        for attempt in &self.attempts {
            let (recorded, whole) = (attempt.body.recorded(), attempt.body.is_whole());
            assert!(recorded <= self.cap && recorded <= gone_by, "{recorded} of {gone_by}");
            // What can be sent from the start is there from the start.
            assert!(!whole || recorded == gone_by || attempt.body.is_end_stream(), "{recorded} of {gone_by}");
            assert!(!whole || !self.failed, "it has failed");
            // Whoever waits while another takes the body is told.
            let robbed = attempt.number < self.turn;
            if let Some(since) = attempt.waits_since.filter(|_| robbed) {
                assert!(attempt.woken.times() > since, "it waits for ever");
            }
        }
    }
}

pub fn run(data: &[u8]) {
    with(data, |Input { cap, hint, knows_its_end, mut comes, events }: Input| {
        comes.truncate(40);
        let last = comes.iter().position(|came| matches!(came, Came::Trailers | Came::Error));
        comes.truncate(last.map_or(comes.len(), |last| last + 1));
        let len = |came: &Came| if let Came::Data(len) = came { usize::from(*len) } else { 0 };
        let whole = comes.iter().map(len).sum::<usize>();
        let ends = comes.last().copied().filter(|came| matches!(came, Came::Trailers | Came::Error));
        let cap = match cap {
            Cap::Any(cap) => cap.into(),
            Cap::ForAll { but_one } => {
                let of_trailers = if let Some(Came::Trailers) = ends { OF_TRAILERS } else { 0 };
                (whole + of_trailers).saturating_sub(but_one.into())
            }
        };
        let mut of = SizeHint::new();
        match hint {
            Says::Nothing => {}
            Says::TheTruth => of.set_exact(whole as u64),
            Says::Any(lower) => of.set_lower(lower),
        }
        let source = Source { comes: comes.into(), next: 0, knows_its_end, hint: of, ended: false };
        let mut story = Story {
            cap,
            attempts: Vec::new(),
            numbers: 0,
            turn: 0,
            came: 0,
            trailers: false,
            failed: false,
            whole,
            ends,
        };
        story.add(Replay::new(source, cap));
        for event in events {
            story.step(event);
        }
        // The latest of those that can still send it does so, if somebody polls it for long enough.
        let latest = (0..story.attempts.len()).max_by_key(|index| story.attempts[*index].number);
        if let Some(index) = latest {
            for _ in 0..100 {
                story.poll(index);
            }
            assert!(story.attempts[index].over.is_some(), "it does not end");
        }
    });
}
