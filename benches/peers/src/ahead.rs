//! Where a peer is faster than we are.

use std::fmt;

use crate::{
    figures,
    measured::{All, Measured},
    subject::Way,
};

/// Peers that take less time than a subject of ours in the same row, called in the same way.
pub struct Ahead<'a> {
    ours: &'a Measured<'a>,
    way: Way,
    /// With their times as shares of ours.
    peers: Vec<(&'a Measured<'a>, f64)>,
}

/// Ways that are compared; one worker is measured only for what two make of it.
const WAYS: [Way; 4] = [Way::Ready, Way::Pending, Way::TwoWorkers, Way::TwoWorkersPending];

/// Each of ours and each way that has any.
pub fn all<'a>(all: &'a All<'a>) -> impl Iterator<Item = Ahead<'a>> {
    let ours = all.subjects.iter().filter(|it| it.subject.is_ours());
    ours.flat_map(move |ours| {
        WAYS.into_iter().map(move |way| {
            let timed = |peer: &'a Measured<'a>| Some((peer, peer.times(way)?.to(ours.times(way)?)));
            let peers = all.row(ours.subject.row).filter(|it| !it.subject.is_ours());
            Ahead { ours, way, peers: peers.filter_map(timed).filter(|(_, ratio)| is_ahead(*ratio)).collect() }
        })
    })
    .filter(|it| !it.peers.is_empty())
}

/// Whether a peer is that takes this share of our time. Equal to two digits is not ahead.
pub fn is_ahead(ratio: f64) -> bool {
    ratio < 0.995
}

impl fmt::Display for Ahead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named =
            |(peer, ratio): &(&Measured<'_>, f64)| format!("{} {}", peer.subject.full_name(), figures::ratio(*ratio));
        let peers: Vec<String> = self.peers.iter().map(named).collect();
        write!(f, "{}, {}: {}", self.ours.subject.name(), self.way.title(), peers.join(", "))
    }
}
