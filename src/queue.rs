//! A first-in-first-out queue whose members can leave from the middle: a doubly linked list in a vector, so that
//! it allocates only to grow.

const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Queue<T> {
    nodes: Vec<Node<T>>,
    head: u32,
    tail: u32,
    /// Unused nodes, linked by `next`.
    free: u32,
}

#[derive(Debug)]
struct Node<T> {
    /// `None` if unused.
    value: Option<T>,
    prev: u32,
    next: u32,
    linked: bool,
}

impl<T> Queue<T> {
    pub(crate) const fn new() -> Self {
        Self { nodes: Vec::new(), head: NONE, tail: NONE, free: NONE }
    }

    /// Appends and returns the member's number, which is its own until [`remove`](Self::remove).
    pub(crate) fn push_back(&mut self, value: T) -> u32 {
        let node = Node { value: Some(value), prev: self.tail, next: NONE, linked: true };
        let index = self.free;
        let index = if index == NONE {
            self.nodes.push(node);
            u32::try_from(self.nodes.len() - 1).expect("bounded by max_queue and max_in_flight, both below 2^31")
        } else {
            self.free = self.nodes[index as usize].next;
            self.nodes[index as usize] = node;
            index
        };
        match self.tail {
            NONE => self.head = index,
            tail => self.nodes[tail as usize].next = index,
        }
        self.tail = index;
        index
    }

    /// As [`push_back`](Self::push_back), but in front of those at the end that are to come `after` it.
    pub(crate) fn push_before(&mut self, value: T, after: impl Fn(&T) -> bool) -> u32 {
        let mut next = NONE;
        while let Some(node) = self.nodes.get(self.before(next) as usize) {
            if !node.value.as_ref().is_some_and(&after) {
                break;
            }
            next = self.before(next);
        }
        let index = self.push_back(value);
        if next != NONE {
            self.unlink(index);
            let prev = self.nodes[next as usize].prev;
            let node = &mut self.nodes[index as usize];
            (node.prev, node.next, node.linked) = (prev, next, true);
            self.nodes[next as usize].prev = index;
            match prev {
                NONE => self.head = index,
                prev => self.nodes[prev as usize].next = index,
            }
        }
        index
    }

    /// Who stands before `next`, which is the end if it is `NONE`.
    fn before(&self, next: u32) -> u32 {
        self.nodes.get(next as usize).map_or(self.tail, |node| node.prev)
    }

    /// The first in the line.
    pub(crate) fn front(&self) -> Option<(u32, &T)> {
        let node = self.nodes.get(self.head as usize)?;
        Some((self.head, node.value.as_ref()?))
    }

    /// The last in the line.
    pub(crate) fn back(&self) -> Option<(u32, &T)> {
        let node = self.nodes.get(self.tail as usize)?;
        Some((self.tail, node.value.as_ref()?))
    }

    /// Takes the first out of the line, and its membership with it.
    pub(crate) fn take_front(&mut self) -> Option<T> {
        self.remove(self.head).1
    }

    /// Takes the first out of the line; it stays a member.
    pub(crate) fn unlink_front(&mut self) -> Option<(u32, &mut T)> {
        self.unlink_one(self.head)
    }

    /// Takes the last out of the line; it stays a member.
    pub(crate) fn unlink_back(&mut self) -> Option<(u32, &mut T)> {
        self.unlink_one(self.tail)
    }

    /// The first in the line that is `wanted`.
    pub(crate) fn find(&self, wanted: impl Fn(&T) -> bool) -> Option<(u32, &T)> {
        let mut index = self.head;
        loop {
            let node = self.nodes.get(index as usize)?;
            match &node.value {
                Some(value) if wanted(value) => return Some((index, value)),
                _ => index = node.next,
            }
        }
    }

    /// Takes that out of the line of which `key` is the least, and among equals the last; it stays a member.
    pub(crate) fn unlink_least<K: Ord>(&mut self, key: impl Fn(&T) -> K) -> Option<(u32, &mut T)> {
        let (mut index, mut least) = (self.tail, None);
        while let Some(node) = self.nodes.get(index as usize) {
            let found = node.value.as_ref().map(&key);
            if least.as_ref().is_none_or(|(_, known)| found < *known) {
                least = Some((index, found));
            }
            index = node.prev;
        }
        self.unlink_one(least?.0)
    }

    /// Takes this one out of the line; it stays a member.
    pub(crate) fn unlink_one(&mut self, index: u32) -> Option<(u32, &mut T)> {
        if index == NONE {
            return None;
        }
        self.unlink(index);
        Some((index, self.nodes[index as usize].value.as_mut()?))
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.nodes.get_mut(index as usize)?.value.as_mut()
    }

    /// Visits every member, in the order of their numbers.
    pub(crate) fn for_each(&mut self, visit: impl FnMut(&mut T)) {
        self.nodes.iter_mut().filter_map(|node| node.value.as_mut()).for_each(visit);
    }

    /// Ends the membership. `true` if it was still in the line.
    pub(crate) fn remove(&mut self, index: u32) -> (bool, Option<T>) {
        let Some(value) = self.nodes.get_mut(index as usize).and_then(|node| node.value.take()) else {
            return (false, None);
        };
        let waited = self.nodes[index as usize].linked;
        if waited {
            self.unlink(index);
        }
        self.nodes[index as usize].next = self.free;
        self.free = index;
        (waited, Some(value))
    }

    fn unlink(&mut self, index: u32) {
        let Node { prev, next, ref mut linked, .. } = self.nodes[index as usize];
        *linked = false;
        match prev {
            NONE => self.head = next,
            prev => self.nodes[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => self.nodes[next as usize].prev = prev,
        }
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
        /// Against a `VecDeque` that does it the slow way.
        #[test]
        fn behaves_like_a_line_of_people(steps in prop::collection::vec((0u8..9, any::<prop::sample::Index>()), 0..200)) {
            let mut queue = Queue::new();
            let (mut line, mut members, mut most) = (VecDeque::new(), Vec::new(), 0);
            for (number, (step, which)) in steps.into_iter().enumerate() {
                match step {
                    0 => {
                        let index = queue.push_back(number);
                        line.push_back(number);
                        members.push((index, number));
                        most = most.max(members.len());
                    }
                    4 => {
                        // Sorted by the last digit, as far as what is at the end is.
                        let after = |other: &usize| other % 10 > number % 10;
                        let index = queue.push_before(number, after);
                        let place = line.iter().rposition(|other| !after(other)).map_or(0, |before| before + 1);
                        line.insert(place, number);
                        members.push((index, number));
                        most = most.max(members.len());
                    }
                    5 => prop_assert_eq!(queue.unlink_back().map(|(_, number)| *number), line.pop_back()),
                    7 => {
                        let least = line.iter().rev().min_by_key(|number| **number % 10).copied();
                        prop_assert_eq!(queue.unlink_least(|number| number % 10).map(|(_, number)| *number), least);
                        line.retain(|number| Some(*number) != least);
                    }
                    8 => {
                        let wanted = |number: &usize| number % 3 == 0;
                        let found = queue.find(wanted).map(|(index, number)| (index, *number));
                        prop_assert_eq!(found.map(|(_, number)| number), line.iter().copied().find(wanted));
                        if let Some((index, number)) = found {
                            prop_assert_eq!(queue.unlink_one(index).map(|(index, number)| (index, *number)), found);
                            line.retain(|other| *other != number);
                        }
                    }
                    6 => prop_assert_eq!(queue.front().map(|(_, number)| *number), line.front().copied()),
                    1 => prop_assert_eq!(queue.unlink_front().map(|(_, number)| *number), line.pop_front()),
                    2 => {
                        let first = line.pop_front();
                        prop_assert_eq!(queue.take_front(), first);
                        members.retain(|(_, number)| Some(*number) != first);
                    }
                    _ if members.is_empty() => {}
                    _ => {
                        let (index, number) = members.swap_remove(which.index(members.len()));
                        let place = line.iter().position(|other| *other == number);
                        prop_assert_eq!(queue.remove(index), (place.is_some(), Some(number)));
                        place.map(|place| line.remove(place));
                    }
                }
            }
            let mut visited = Vec::new();
            queue.for_each(|number| visited.push(*number));
            members.sort_unstable();
            prop_assert_eq!(visited, Vec::from_iter(members.iter().map(|(_, number)| *number)));
            for (index, number) in members {
                prop_assert_eq!(queue.get_mut(index).copied(), Some(number));
            }
            while let Some(next) = line.pop_front() {
                prop_assert_eq!(queue.unlink_front().map(|(_, number)| *number), Some(next));
            }
            prop_assert_eq!(queue.nodes.len(), most, "it grows only when nothing is free");
        }
    }
}
