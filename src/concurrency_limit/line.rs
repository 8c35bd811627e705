//! Who waits, and who is next: all that is behind the lock of a limit.
//!
//! Pure: times are nanoseconds since some moment, and come as arguments.

use std::{cmp::Reverse, task::Waker, time::Duration};

use super::{
    codel::Codel,
    regulator::{Gate, Regulator},
    shares::{Share, Shares},
};
use crate::{Priority, clock::nanos, queue::Queue};

/// In which order those that wait are let out. In any of them the higher [`Priority`] goes first.
///
/// ```
/// use buttress::{ConcurrencyLimit, concurrency_limit::Discipline};
/// let limit = ConcurrencyLimit::builder().max_in_flight(8).discipline(Discipline::Deadline).build()?;
/// # Ok::<(), buttress::ConfigError>(())
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discipline {
    /// Who waits longest, first; but while an adaptive limit [holds back](crate::ConcurrencyLimitBuilder::hold_back), whoever was asked
    /// for the least often, and came last.
    #[default]
    Fifo,
    /// Who has the least time left, first; and whoever has too little left for an answer is refused instead, which an adaptive limit
    /// knows by how long answers take: four times what a third of them take less than, or half of the time that calls have, where that is
    /// less and an answer does not take so long. (For a fixed one it is nothing left at all.) Whoever finds room goes, however little is left. Those without a deadline
    /// go in the order in which they came; once they wait for long, the newest first, as nobody may be left who waits for the others.
    Deadline,
    /// Who waits longest, first, as long as the queue passes; the newest first once it has stood for so long, since then whoever came
    /// first has mostly gone. Those behind wait on, so set a [`max_wait`](crate::ConcurrencyLimitBuilder::max_wait). (Maurer, *Fail at
    /// Scale*, 2015: adaptive LIFO, there after 100 ms.)
    Lifo {
        /// After how long a queue stands.
        after: Duration,
    },
    /// Who waits longest, first; but while the shortest wait of an interval is above a target, the queue stands, and whoever has waited
    /// for more than twice the target is refused. (Nichols and Jacobson, *Controlling Queue Delay*, 2012, as in folly.)
    Codel {
        /// How long is no wait.
        target: Duration,
        /// Over so long a burst may pass. Several calls must end in it: where a call takes 200 ms, an interval of 100 ms sees nothing.
        interval: Duration,
    },
}

impl Discipline {
    /// [`Lifo`](Self::Lifo) after 100 ms.
    pub const LIFO: Self = Self::Lifo { after: Duration::from_millis(100) };
    /// [`Codel`](Self::Codel) with a target of 5 ms in 100 ms.
    pub const CODEL: Self = Self::Codel { target: Duration::from_millis(5), interval: Duration::from_millis(100) };
}

#[derive(Debug, Default)]
pub(super) struct Line {
    queue: Queue<Waiter>,
    discipline: Discipline,
    /// How many may be in flight, if nobody finds that.
    most: u32,
    pub(super) regulator: Option<Regulator>,
    pub(super) shares: Shares,
    codel: Option<Codel>,
    /// Since when somebody waits.
    waits_since: u64,
    /// Who looks again when the gate opens, and when that is.
    lookout: Option<(u32, u64)>,
}

#[derive(Debug)]
struct Waiter {
    standing: Standing,
    since: u64,
    /// As it would be if it began with the wait; it begins with the first poll.
    deadline: Option<u64>,
    polled: bool,
    /// How often it was sent before.
    attempts: u32,
    priority: Priority,
    share: Share,
}

#[derive(Debug)]
enum Standing {
    /// With the waker of its latest poll, if it was polled.
    Waiting(Option<Waker>),
    /// It holds a permit and does not know yet.
    Granted,
    /// It is refused and does not know yet.
    Refused(Refusal),
}

/// Why, with times in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    /// So much time was left, and so much is the least.
    Late { left: u64, least: u64 },
    /// It waited for so long, and may for so long.
    Stood { waited: u64, most: u64 },
    /// Its place was given to a higher priority.
    Evicted,
}

/// What a poll finds.
pub(super) enum Found {
    Granted(Share),
    Refused(Refusal),
    /// It goes on waiting, and looks again by itself then.
    Waits(Option<u64>),
}

/// Without a deadline one has so long, as far as the order goes; and after so long the newest go first.
const PATIENT: u64 = 10_000_000_000;
const LONG: u64 = 100_000_000;

impl Line {
    pub(super) fn new(discipline: Discipline, regulator: Option<Regulator>, shares: Shares) -> Self {
        let codel = match discipline {
            Discipline::Codel { target, interval } => Some(Codel::new(target, interval)),
            _ => None,
        };
        Self { discipline, regulator, shares, codel, ..Self::default() }
    }

    /// Whether time matters to it.
    pub(super) fn is_timed(&self) -> bool {
        self.regulator.is_some() || self.discipline != Discipline::Fifo
    }

    /// How far it may go. Zero: nowhere, until it may again.
    pub(super) fn bound(&mut self, max: u32) {
        self.most = max;
        if let Some(regulator) = &mut self.regulator {
            regulator.bound(max.into());
        }
    }

    /// How many may be in flight while nothing is held back.
    pub(super) fn calls(&self) -> u32 {
        self.regulator.as_ref().map_or(self.most, Regulator::calls)
    }

    /// How many may be in flight for all who ask no further.
    pub(super) fn unasked(&self) -> u32 {
        if self.shares.is_empty() { self.regulator.as_ref().map_or(self.most, Regulator::unasked) } else { 0 }
    }

    /// Whether it holds nothing back.
    pub(super) fn is_settled(&self) -> bool {
        self.regulator.as_ref().is_none_or(|regulator| regulator.unasked() > 0)
    }

    /// A call came that was never sent before.
    pub(super) fn came(&mut self, left: Option<u64>) {
        if let Some(regulator) = &mut self.regulator {
            regulator.came(left);
        }
    }

    /// To the end of those of its priority, or to where its deadline puts it among them; its number.
    pub(super) fn join(
        &mut self,
        now: u64,
        deadline: Option<u64>,
        attempts: u32,
        priority: Priority,
        share: Share,
    ) -> u32 {
        if self.queue.front().is_none() {
            self.waits_since = now;
            self.codel.iter_mut().for_each(Codel::is_empty);
        }
        let standing = Standing::Waiting(None);
        let waiter = Waiter { standing, since: now, deadline, polled: false, attempts, priority, share };
        self.shares.joined(share);
        let until = match self.discipline {
            Discipline::Deadline => waiter.until(),
            _ => u64::MAX,
        };
        self.queue.push_before(waiter, |other| {
            other.priority < priority || other.priority == priority && other.until() > until
        })
    }

    /// The lowest priority of those that wait.
    pub(super) fn lowest(&self) -> Option<Priority> {
        self.queue.back().map(|(_, waiter)| waiter.priority)
    }

    /// Of the lowest priority whoever would be the last to go gives up its place: its waker, to wake outside of the lock.
    pub(super) fn evict(&mut self, now: u64) -> Option<Waker> {
        let oldest = |lowest| self.queue.find(|waiter| waiter.priority == lowest);
        let newest_first = matches!(self.discipline, Discipline::Lifo { .. }) && self.is_stale(now);
        let (index, _) = if newest_first { oldest(self.lowest()?) } else { self.queue.back() }?;
        self.queue.unlink_one(index)?;
        self.settle(index, Standing::Refused(Refusal::Evicted))
    }

    /// It is polled: from now on it knows when it is too late.
    pub(super) fn polled(&mut self, number: u32, deadline: Option<u64>) {
        if let Some(waiter) = self.queue.get_mut(number) {
            (waiter.polled, waiter.deadline) = (true, deadline);
        }
    }

    /// How many may be in flight for one more to go.
    pub(super) fn room(&self, now: u64) -> u32 {
        match self.regulator.as_ref().map(|regulator| regulator.gate(now)) {
            None => self.most,
            Some(Gate::Open(most) | Gate::Probe(most)) => most,
            Some(Gate::Shut(_)) => 0,
        }
    }

    /// One goes.
    pub(super) fn goes(&mut self, now: u64, share: Share) {
        self.shares.took(share);
        if let Some(regulator) = &mut self.regulator {
            regulator.went(now);
        }
    }

    /// Whether somebody waits who is owed a permit of so many: then he is the next, whether there is room or not, as what others
    /// borrow before him would come on top. While the service is down it is chosen otherwise, as long as there is room.
    pub(super) fn owes(&self, now: u64, max: u32, has_room: bool) -> bool {
        self.shares.owe(max) && !(has_room && self.is_down(now))
    }

    /// Whether whoever comes is owed a permit of so many, whoever waits. While the service is down those are chosen from.
    pub(super) fn owes_to(&self, now: u64, share: Share, max: u32) -> bool {
        self.shares.admits(share, max) && !self.is_down(now)
    }

    /// Whether the service is silent or fails every call.
    fn is_down(&self, now: u64) -> bool {
        self.regulator.as_ref().is_some_and(|regulator| regulator.is_down(now))
    }

    /// The first who is owed a permit of so many.
    fn owed(&self, of: Option<u32>) -> Option<(u32, &Waiter)> {
        let max = of?;
        self.queue.find(|waiter| self.shares.owe_to(waiter.share, max))
    }

    /// The next gets its permit, which is the first who is owed it of so many, if somebody is; its waker, to wake outside of the lock.
    pub(super) fn grant(&mut self, now: u64, owed_of: Option<u32>) -> Option<Waker> {
        let (index, waiter) = if let Some((index, _)) = self.owed(owed_of) {
            self.queue.unlink_one(index)
        } else if self.is_down(now) {
            // Whoever came last can wait for it the longest, and nobody is sent again and again while others wait.
            self.queue.unlink_least(|waiter| (Reverse(waiter.priority), waiter.attempts))
        } else if !self.is_stale(now) {
            self.queue.unlink_front()
        } else {
            // Of those with a deadline it is not the newest who stands last, but who has the most time left.
            let has_deadline = |waiter: &Waiter| self.discipline == Discipline::Deadline && waiter.deadline.is_some();
            let key = |waiter: &Waiter| (Reverse(waiter.priority), has_deadline(waiter));
            let last_is_next =
                self.queue.front().map(|(_, first)| key(first)) == self.queue.back().map(|(_, last)| key(last));
            if last_is_next { self.queue.unlink_back() } else { self.queue.unlink_least(key) }
        }?;
        let share = waiter.share;
        self.goes(now, share);
        self.settle(index, Standing::Granted)
    }

    /// Whoever was just taken out stands so from now on: its waker, if it waited with one.
    fn settle(&mut self, index: u32, standing: Standing) -> Option<Waker> {
        self.relieve(index);
        let waiter = self.queue.get_mut(index)?;
        self.shares.left(waiter.share);
        std::mem::replace(&mut waiter.standing, standing).waker()
    }

    /// Whether the newest go first, as those before them have waited for so long that they may be gone.
    fn is_stale(&self, now: u64) -> bool {
        match self.discipline {
            Discipline::Deadline => self
                .queue
                .front()
                .is_some_and(|(_, first)| first.deadline.is_none() && now.saturating_sub(first.since) > LONG),
            Discipline::Lifo { after } => now.saturating_sub(self.waits_since) > nanos(after),
            Discipline::Fifo | Discipline::Codel { .. } => false,
        }
    }

    /// There is room for the next. Takes it out if it has stood for too long: its waker, to wake outside of the lock.
    pub(super) fn refuse_stood(&mut self, now: u64) -> Option<Option<Waker>> {
        let is_down = self.is_down(now);
        let codel = self.codel.as_mut()?;
        if is_down {
            // They are held back, and are let out once the service is back.
            codel.is_empty();
            return None;
        }
        let (index, first) = self.queue.front()?;
        let (waited, most) = (now.saturating_sub(first.since), codel.most());
        if !codel.refuses(now, waited) {
            return None;
        }
        self.refuse(index, Refusal::Stood { waited, most })
    }

    fn refuse(&mut self, index: u32, why: Refusal) -> Option<Option<Waker>> {
        self.queue.unlink_one(index)?;
        Some(self.settle(index, Standing::Refused(why)))
    }

    /// Takes out the first, or who is the next as he is owed it, if there is too little time left: its waker, to wake outside of the lock.
    pub(super) fn refuse_late(&mut self, now: u64, owed_of: Option<u32>) -> Option<Option<Waker>> {
        if self.discipline != Discipline::Deadline {
            return None;
        }
        let least = self.least_left();
        let late = |(index, waiter): (u32, &Waiter)| {
            let left = waiter.deadline?.saturating_sub(now);
            (left < least && waiter.polled).then_some((index, left))
        };
        let (index, left) = self.queue.front().into_iter().chain(self.owed(owed_of)).find_map(late)?;
        self.refuse(index, Refusal::Late { left, least })
    }

    /// How much time whoever goes must have left.
    fn least_left(&self) -> u64 {
        self.regulator.as_ref().map_or(1, |regulator| regulator.least_left().max(1))
    }

    /// What became of it; if it goes on waiting, its waker is exchanged with what was kept.
    pub(super) fn look(&mut self, number: u32, now: u64, waker: &mut Option<Waker>) -> Found {
        let Some(waiter) = self.queue.get_mut(number) else { return Found::Granted(Share::NONE) };
        let found = match &mut waiter.standing {
            Standing::Waiting(kept) => {
                std::mem::swap(kept, waker);
                return Found::Waits(self.looks_out(number, now));
            }
            Standing::Refused(why) => Found::Refused(*why),
            Standing::Granted => Found::Granted(waiter.share),
        };
        self.queue.remove(number);
        found
    }

    /// While the gate is shut one looks out for all.
    fn looks_out(&mut self, number: u32, now: u64) -> Option<u64> {
        self.relieve(number);
        let until = self.opens_unseen(now)?;
        self.lookout = Some((number, until));
        Some(until)
    }

    /// When the gate opens, if it is shut and nobody looks out who will look in time; whose time has come may have looked, and found
    /// no room.
    fn opens_unseen(&self, now: u64) -> Option<u64> {
        let Gate::Shut(until) = self.regulator.as_ref()?.gate(now) else { return None };
        let is_watched = self.lookout.is_some_and(|(_, at)| now < at && at <= until);
        (!is_watched).then_some(until)
    }

    /// Nobody can go now. Whoever is to look out for when that changes, if nobody does yet: its waker.
    pub(super) fn needs_lookout(&mut self, now: u64) -> Option<Waker> {
        self.opens_unseen(now)?;
        // Whoever was never polled hears nothing.
        let mut waker = None;
        self.queue.for_each(|waiter| {
            if waker.is_none() {
                waker = waiter.standing.take_waker();
            }
        });
        waker
    }

    fn relieve(&mut self, number: u32) {
        if self.lookout.is_some_and(|(lookout, _)| lookout == number) {
            self.lookout = None;
        }
    }

    /// `number` leaves: whether it waited, the permit that it had, and what is to be dropped outside of the lock.
    pub(super) fn leave(&mut self, number: u32) -> (bool, Option<Share>, Option<Waker>) {
        self.relieve(number);
        let (waited, Some(Waiter { standing, share, .. })) = self.queue.remove(number) else {
            return (false, None, None);
        };
        if waited {
            self.shares.left(share);
        }
        let granted = matches!(standing, Standing::Granted).then_some(share);
        (waited, granted, standing.waker())
    }

    /// The wakers of all that wait.
    pub(super) fn wakers(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        self.queue.for_each(|waiter| wakers.extend(waiter.standing.take_waker()));
        wakers
    }
}

impl Waiter {
    fn until(&self) -> u64 {
        self.deadline.unwrap_or_else(|| self.since.saturating_add(PATIENT))
    }
}

impl Standing {
    fn waker(self) -> Option<Waker> {
        match self {
            Standing::Waiting(waker) => waker,
            Standing::Granted | Standing::Refused(_) => None,
        }
    }

    fn take_waker(&mut self) -> Option<Waker> {
        match self {
            Standing::Waiting(waker) => waker.take(),
            Standing::Granted | Standing::Refused(_) => None,
        }
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use super::*;
    use crate::concurrency_limit::{Headroom, regulator::Regulator};

    const MS: u64 = 1_000_000;
    const ANY: Priority = Priority::CRITICAL;

    fn by_deadline() -> Line {
        Line::new(Discipline::Deadline, None, Shares::default())
    }

    fn regulated() -> Line {
        let regulator = Regulator::new(Box::new(Headroom::default()), 0.02, 100.0, true);
        Line::new(Discipline::Deadline, Some(regulator), Shares::default())
    }

    fn granted(line: &mut Line, number: u32) -> bool {
        matches!(line.look(number, 0, &mut None), Found::Granted(_))
    }

    #[test]
    fn the_least_time_left_goes_first() {
        let mut line = by_deadline();
        let [late, soon, never, middle] =
            [Some(900), Some(300), None, Some(600)].map(|ms| line.join(0, ms.map(|ms| ms * MS), 0, ANY, Share::NONE));
        for next in [soon, middle, late, never] {
            line.grant(MS, None);
            assert!(granted(&mut line, next));
        }
    }

    #[test]
    fn without_deadlines_it_is_first_in_first_out_until_they_wait_for_long() {
        let mut line = by_deadline();
        let [first, second, third] = [0, 1, 2].map(|at| line.join(at * MS, None, 0, ANY, Share::NONE));
        line.grant(100 * MS, None);
        assert!(granted(&mut line, first));
        line.grant(102 * MS, None);
        assert!(granted(&mut line, third), "the second has waited for more than 100 ms");
        line.grant(102 * MS, None);
        assert!(granted(&mut line, second));
    }

    #[test]
    fn who_comes_too_late_is_told_how_late() {
        let mut line = by_deadline();
        let (late, there) =
            (line.join(0, Some(5 * MS), 0, ANY, Share::NONE), line.join(0, Some(9 * MS), 0, ANY, Share::NONE));
        assert!(line.refuse_late(9 * MS, None).is_none(), "it has yet to be polled, and the time does not run before");
        line.polled(late, Some(5 * MS));
        assert!(line.refuse_late(4 * MS, None).is_none());
        assert!(line.refuse_late(5 * MS, None).is_some() && line.refuse_late(5 * MS, None).is_none());
        assert!(matches!(line.look(late, 5 * MS, &mut None), Found::Refused(Refusal::Late { left: 0, least: 1 })));
        assert!(matches!(line.look(there, 5 * MS, &mut None), Found::Waits(None)));
        assert!(Line::default().refuse_late(u64::MAX, None).is_none(), "the order of coming knows no deadlines");
    }

    #[test]
    fn while_the_gate_is_shut_one_looks_out_and_hands_on() {
        let mut line = regulated();
        line.regulator.as_mut().unwrap().fall_silent(0);
        let [one, two] = [0, 1].map(|at| line.join(at, None, 0, ANY, Share::NONE));
        let Found::Waits(Some(until)) = line.look(one, 1, &mut None) else { panic!("the first to look looks out") };
        assert!(matches!(line.look(two, 1, &mut None), Found::Waits(None)), "one is enough");
        assert!(matches!(line.look(one, 1, &mut None), Found::Waits(Some(same)) if same == until), "it still does");
        assert!(line.leave(one).0);
        assert!(matches!(line.look(two, 1, &mut None), Found::Waits(Some(same)) if same == until), "nobody else does");
        // Whoever is granted looks out no longer.
        line.grant(until, None);
        assert!(granted(&mut line, two) && line.lookout.is_none());
    }

    #[test]
    fn who_looks_out_is_woken_if_the_gate_opens_sooner() {
        let mut line = regulated();
        line.regulator.as_mut().unwrap().fall_silent(1_000 * MS);
        let one = line.join(0, None, 0, ANY, Share::NONE);
        let mut waker = Some(Waker::noop().clone());
        assert!(matches!(line.look(one, 0, &mut waker), Found::Waits(Some(_))));
        assert!(line.needs_lookout(1_000 * MS).is_none(), "it looks out already");
        line.lookout = Some((one, u64::MAX));
        assert!(line.needs_lookout(1_000 * MS).is_some(), "it would look too late");
    }

    #[test]
    fn while_it_is_down_nobody_is_sent_again_and_again() {
        let mut line = regulated();
        line.regulator.as_mut().unwrap().fall_silent(0);
        let [tired, first, second, spent] = [1, 0, 0, 2].map(|attempts| line.join(0, None, attempts, ANY, Share::NONE));
        for next in [second, first, tired, spent] {
            line.grant(MS, None);
            assert!(granted(&mut line, next));
        }
    }

    #[test]
    fn who_leaves_says_what_it_had() {
        let mut line = by_deadline();
        let [granted, late, waits] = [3, 1, 9].map(|ms| line.join(0, Some(ms * MS), 0, ANY, Share::NONE));
        line.polled(late, Some(MS));
        assert!(line.refuse_late(2 * MS, None).is_some());
        line.grant(2 * MS, None);
        let left = [granted, late, waits]
            .map(|number| line.leave(number))
            .map(|(waited, granted, _)| (waited, granted.is_some()));
        assert_eq!(left, [(false, true), (false, false), (true, false)]);
    }
}
