//! What has gone by of a body, up to a cap: the pure part of [`Replay`](super::Replay).

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

/// Whoever says how much is to come, a peer perhaps, does not make us reserve more than this.
const BELIEVED: usize = 64 * 1024;

/// Records bytes and trailers until it would hold more than its cap: it drops all then, and stays empty.
///
/// Chunks are copied and not kept by reference: a few bytes of a chunk can hold on to all of a large buffer, and many
/// small ones cost more than they hold.
#[derive(Debug)]
pub(super) struct Tape {
    cap: usize,
    /// What may have been played already, and is shared with whoever it was played to.
    sealed: Vec<Item>,
    /// What is recorded at present; its capacity counts as well, and keeps to the cap.
    open: Vec<u8>,
    /// All that is recorded, in bytes.
    len: usize,
    torn: bool,
}

#[derive(Debug)]
enum Item {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Tape {
    pub(super) fn new(cap: usize) -> Self {
        Self { cap, sealed: Vec::new(), open: Vec::new(), len: 0, torn: false }
    }

    /// How many bytes it holds.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many frames it has, once one of them was played.
    pub(super) fn frames(&self) -> usize {
        self.sealed.len()
    }

    /// Whether something has gone by that is not recorded.
    pub(super) fn is_torn(&self) -> bool {
        self.torn
    }

    /// Something goes by unrecorded: what came before is worth nothing any more.
    pub(super) fn tear(&mut self) {
        *self = Self { torn: true, ..Self::new(self.cap) };
    }

    /// Records `frame`, after which at least `more` bytes are to come: what cannot fit is not begun.
    pub(super) fn record(&mut self, frame: &Frame<Bytes>, more: u64) {
        if let Some(chunk) = frame.data_ref() {
            if !chunk.is_empty() && !self.torn {
                self.record_data(chunk, more);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            if !self.torn {
                self.record_trailers(trailers);
            }
        }
    }

    fn record_data(&mut self, chunk: &[u8], more: u64) {
        let left = self.cap - self.len;
        let wanted = usize::try_from(more).ok().and_then(|more| more.checked_add(chunk.len()));
        let Some(wanted) = wanted.filter(|wanted| *wanted <= left) else { return self.tear() };
        if self.open.capacity() - self.open.len() < chunk.len() {
            // Twice as much each time, but no more than may come, and at once what will: as far as one believes it.
            let ahead = wanted.min(BELIEVED).max(self.open.len());
            self.open.reserve_exact(ahead.clamp(chunk.len(), left));
        }
        self.open.extend_from_slice(chunk);
        self.len += chunk.len();
    }

    fn record_trailers(&mut self, trailers: &HeaderMap) {
        let size: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if size > self.cap - self.len {
            return self.tear();
        }
        self.len += size;
        self.seal();
        self.sealed.push(Item::Trailers(trailers.clone()));
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.open.shrink_to_fit();
            self.sealed.push(Item::Data(std::mem::take(&mut self.open).into()));
        }
    }

    /// The recorded frame number `at`, counted from 0; `None` at the end of the recording.
    pub(super) fn play(&mut self, at: usize) -> Option<Frame<Bytes>> {
        self.seal();
        self.sealed.get(at).map(|item| match item {
            Item::Data(chunk) => Frame::data(chunk.clone()),
            Item::Trailers(trailers) => Frame::trailers(trailers.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All that is played from the start, and in how many frames.
    fn play_all(tape: &mut Tape) -> (Vec<u8>, Option<HeaderMap>, usize) {
        let (mut bytes, mut trailers, mut at) = (Vec::new(), None, 0);
        while let Some(frame) = tape.play(at) {
            match frame.into_data() {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
            at += 1;
        }
        (bytes, trailers, at)
    }

    fn held(tape: &Tape) -> usize {
        let sealed = tape.sealed.iter().map(|item| match item {
            Item::Data(chunk) => chunk.len(),
            Item::Trailers(trailers) => trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum(),
        });
        sealed.sum::<usize>() + tape.open.capacity()
    }

    #[test]
    fn a_length_that_is_only_claimed_costs_no_memory() {
        let mut tape = Tape::new(usize::MAX);
        tape.record(&Frame::data(Bytes::from_static(b"x")), 1 << 62);
        assert_eq!(tape.len(), 1);
        assert!(held(&tape) <= BELIEVED);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_was_recorded_is_played_whole_or_the_tape_is_torn_and_empty(
            chunks in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 0..30),
            cap in 0_usize..400,
            known in any::<bool>(),
            trailer in prop::option::of("[a-z]{1,20}"),
        ) {
            let mut tape = Tape::new(cap);
            let mut gone_by = Vec::new();
            let total: usize = chunks.iter().map(|(chunk, _)| chunk.len()).sum();
            for (chunk, played) in &chunks {
                gone_by.extend_from_slice(chunk);
                let more = if known { total - gone_by.len() } else { 0 };
                tape.record(&Frame::data(Bytes::copy_from_slice(chunk)), more as u64);
                prop_assert!(held(&tape) <= cap, "{} of {cap}", held(&tape));
                // A further attempt reads it while it grows.
                if *played && !tape.is_torn() {
                    prop_assert_eq!(&play_all(&mut tape).0, &gone_by);
                }
                // What cannot fit is known at the first chunk that is not empty.
                let fits = if known && !gone_by.is_empty() { total <= cap } else { gone_by.len() <= cap };
                prop_assert_eq!(tape.is_torn(), !fits);
            }
            let trailers: Option<HeaderMap> =
                trailer.map(|value| HeaderMap::from_iter([(http::header::ETAG, value.parse().unwrap())]));
            let size = trailers.as_ref().map_or(0, |trailers| 4 + trailers[http::header::ETAG].len());
            if let Some(trailers) = &trailers {
                tape.record(&Frame::trailers(trailers.clone()), 0);
            }
            prop_assert!(held(&tape) <= cap);
            prop_assert_eq!(tape.is_torn(), total + size > cap);
            if tape.is_torn() {
                prop_assert_eq!((tape.len(), held(&tape), play_all(&mut tape).2), (0, 0, 0));
            } else {
                prop_assert_eq!(tape.len(), total + size);
                let (bytes, played, frames) = play_all(&mut tape);
                prop_assert_eq!((bytes, played), (gone_by, trailers));
                let plays = chunks.iter().filter(|(_, played)| *played).count();
                prop_assert!(frames <= plays + 2, "many small chunks are few large ones: {frames} frames");
            }
        }
    }
}
