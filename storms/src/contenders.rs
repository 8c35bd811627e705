//! Who is in the tables, and who of them in the chart; ours comes last.

use crate::{
    peers::{AIMD, FAILSAFE, SEATBELT, VEGAS},
    sim::contenders::{BUTTRESS, Contender, NAIVE_RETRY, NO_POLICY, TOWER},
};

pub const ALL: [Contender; 8] = [NO_POLICY, NAIVE_RETRY, TOWER, FAILSAFE, SEATBELT, AIMD, VEGAS, BUTTRESS];

pub const CHARTED: [Contender; 6] = [NO_POLICY, NAIVE_RETRY, TOWER, FAILSAFE, VEGAS, BUTTRESS];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{clients::run, faults::Fault, setup::Setup};

    /// As they would not if a clock of theirs went with the machine's, or a chance of theirs could not be seeded.
    #[test]
    fn peers_have_the_same_end_for_the_same_seed() {
        for who in [FAILSAFE, SEATBELT, AIMD, VEGAS] {
            let [once, again, other] =
                [1, 1, 2].map(|seed| run(&Setup::USUAL, &Fault::FLAPPING, &who, seed).expect("there are runtimes"));
            assert!(once == again, "{}", who.name);
            assert!(once != other, "{}", who.name);
            let last = once.calls.iter().rev().take(100);
            assert!(last.clone().all(|call| call.end.is_ok()), "{}: its circuit has closed", who.name);
        }
    }
}
