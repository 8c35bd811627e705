//! One host: so many workers, one line before them, and something that goes wrong for a while. Time is an argument.

use std::{collections::VecDeque, time::Duration};

use super::faults::Fault;

/// Who waits for an answer.
pub trait Caller {
    /// Does not wait any more.
    fn has_gone(&self) -> bool;
}

/// One request.
#[derive(Debug)]
pub struct Request<C> {
    pub caller: C,
    /// How long a worker takes for it when all is well.
    pub work: Duration,
    /// From 0 to 1; decides whether it fails.
    pub luck: f64,
}

/// A request that a worker has taken up.
#[derive(Debug, PartialEq, Eq)]
pub struct Begun<C> {
    pub caller: C,
    pub done: Duration,
    pub fails: bool,
}

/// What became of the requests that reached it. What is left of them waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub reached: u64,
    pub refused: u64,
    /// The caller had gone, and it noticed: taken out of the line.
    pub dropped: u64,
    pub begun: u64,
    /// Of those begun, the caller had gone already: done in vain.
    pub in_vain: u64,
}

/// The host.
#[derive(Debug)]
pub struct Server<C> {
    fault: Fault,
    host: usize,
    workers: usize,
    notices: bool,
    busy: usize,
    line: VecDeque<Request<C>>,
    pub counts: Counts,
}

impl<C: Caller> Server<C> {
    /// The fault's host of that number. One that `notices` drops from its line those whose callers have gone.
    pub fn new(fault: Fault, host: usize, workers: usize, notices: bool) -> Self {
        Self { fault, host, workers, notices, busy: 0, line: VecDeque::new(), counts: Counts::default() }
    }

    /// A request comes, into the line or, if it is refused, back.
    ///
    /// # Errors
    /// The request, if it is refused.
    pub fn accept(&mut self, now: Duration, request: Request<C>) -> Result<(), Request<C>> {
        self.counts.reached += 1;
        if self.fault.refuses(self.host, now, request.luck) {
            self.counts.refused += 1;
            return Err(request);
        }
        self.line.push_back(request);
        Ok(())
    }

    /// What is taken up next, if there is something to do and a worker to do it. The worker is busy until
    /// [`finish`](Self::finish).
    pub fn begin(&mut self, now: Duration) -> Option<Begun<C>> {
        let lost = self.fault.lost(self.host, now, self.workers);
        if self.busy + lost >= self.workers {
            return None;
        }
        while let Some(Request { caller, work, luck }) = self.line.pop_front() {
            let gone = caller.has_gone();
            if gone && self.notices {
                self.counts.dropped += 1;
                continue;
            }
            self.busy += 1;
            self.counts.begun += 1;
            self.counts.in_vain += u64::from(gone);
            let done = self.fault.done(self.host, now, work);
            return Some(Begun { caller, done, fails: self.fault.fails(self.host, now, luck) });
        }
        None
    }

    /// One that was begun is done.
    pub fn finish(&mut self) {
        self.busy -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::setup::FROM, *};

    /// By number; those of a hundred and more have gone.
    impl Caller for u32 {
        fn has_gone(&self) -> bool {
            *self >= 100
        }
    }

    const WORK: Duration = Duration::from_millis(20);

    fn server(fault: Fault, notices: bool, callers: &[u32]) -> Server<u32> {
        let mut server = Server::new(fault, 0, 2, notices);
        for caller in callers {
            server.accept(FROM, Request { caller: *caller, work: WORK, luck: 0.4 }).expect("it refuses nothing");
        }
        server
    }

    fn begun(server: &mut Server<u32>) -> Vec<u32> {
        std::iter::from_fn(|| server.begin(FROM)).map(|begun| begun.caller).collect()
    }

    #[test]
    fn first_in_first_out_and_no_more_at_once_than_there_are_workers() {
        let mut server = server(Fault::OVERLOAD_3, false, &[1, 2, 3, 4]);
        assert_eq!(begun(&mut server), [1, 2]);
        server.finish();
        assert_eq!(begun(&mut server), [3]);
        server.finish();
        assert_eq!(server.begin(FROM), Some(Begun { caller: 4, done: FROM + WORK, fails: false }));
    }

    #[test]
    fn whoever_has_gone_is_served_in_vain_unless_it_notices() {
        let mut blind = server(Fault::OVERLOAD_3, false, &[100, 1, 2]);
        assert_eq!(begun(&mut blind), [100, 1]);
        assert_eq!((blind.counts.in_vain, blind.counts.dropped), (1, 0));
        let mut sees = server(Fault::OVERLOAD_3, true, &[100, 1, 2]);
        assert_eq!(begun(&mut sees), [1, 2]);
        assert_eq!((sees.counts.in_vain, sees.counts.dropped), (0, 1));
    }

    #[test]
    fn it_takes_up_what_it_does_not_end_while_it_hangs() {
        let mut server = server(Fault::HANG, false, &[1, 2, 3]);
        let done: Vec<_> = std::iter::from_fn(|| server.begin(FROM)).map(|begun| begun.done).collect();
        assert_eq!(done, [super::super::setup::UNTIL + WORK; 2]);
    }

    #[test]
    fn half_its_workers_begin_nothing() {
        assert_eq!(begun(&mut server(Fault::HALF, false, &[1, 2])), [1]);
    }

    #[test]
    fn a_costly_failure_takes_as_long_and_a_refusal_no_worker() {
        let mut costly = server(Fault::COSTLY_50, false, &[1]);
        assert_eq!(costly.begin(FROM), Some(Begun { caller: 1, done: FROM + WORK, fails: true }));
        let mut refusing = server(Fault::REFUSE, false, &[]);
        let back = refusing.accept(FROM, Request { caller: 7, work: WORK, luck: 0.9 });
        assert_eq!(back.map_err(|request| request.caller), Err(7));
        assert_eq!(refusing.begin(FROM), None);
    }
}
