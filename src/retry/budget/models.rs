use loom::thread;

use super::*;
use crate::sync::models::interrupted;

/// One deposit pays for one retry.
fn budget() -> Budget {
    BudgetBuilder { ratio: 1.0, min_per_second: 0 }.assemble()
}

fn withdraws(budget: &Budget) -> thread::JoinHandle<bool> {
    let budget = budget.clone();
    thread::spawn(move || budget.withdraw(budget.shared.base, 0))
}

// HAZARD: R3
#[test]
fn it_is_never_overdrawn() {
    // A withdrawal reads every word of the window.
    interrupted(2, || {
        let budget = budget();
        let now = || budget.shared.base;
        budget.deposit(now);
        let other = withdraws(&budget);
        let ours = budget.withdraw(now(), 0);
        assert_ne!(ours, other.join().unwrap(), "one deposit, one retry");
    });
}

// HAZARD: R3
#[test]
fn nor_while_others_deposit() {
    interrupted(2, || {
        let budget = budget();
        let now = || budget.shared.base;
        let others = [withdraws(&budget), withdraws(&budget)];
        budget.deposit(now);
        let withdrawn = others.map(|other| u64::from(other.join().unwrap())).iter().sum::<u64>();
        assert!(withdrawn <= 1, "one deposit, one retry");
        assert_eq!(budget.left(0), 1 - withdrawn, "and none is lost");
    });
}
