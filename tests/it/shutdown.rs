//! Graceful shutdown: a story file for each of its sides. `SHUTDOWN: n` counts the scenarios that it must get right.

mod calls;
#[cfg(unix)]
mod child;
mod elsewhere;
mod given_away;
mod hostile;
mod life;
mod policies;
#[cfg(unix)]
mod process;
mod serve;
mod tasks;
