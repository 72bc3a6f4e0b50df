//! The connections of one receiver: a slot for each, and two queues of slots, in the order in which their times end.

use std::sync::Arc;
use std::time::Instant;

use super::connection::{Connection, Socket};
use super::long_heads::LongHead;

/// No slot.
const NONE: u32 = u32::MAX;

/// Slots that are kept when no connection is left; more are given back.
const MAX_RETAINED: usize = 1024;

/// A connection's place. Slot numbers are reused; the generation tells connections with the same number apart.
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) state: State,
    pub(super) interest: Interest,
    /// Since when it is in this state.
    pub(super) since: Instant,
    /// Its deadline in [`Timers`](super::timers::Timers), if it has one.
    pub(super) timer: Option<Instant>,
    /// While it waits for the rest of a long head: how that is counted.
    pub(super) long_head: Option<LongHead>,
    pub(super) socket: Option<Arc<Socket>>,
    queue: Option<Queue>,
    previous: u32,
    next: u32,
}

/// The state of a connection.
pub(super) enum State {
    Free,
    /// Waits for a head.
    Idle(Box<Connection>),
    /// Has requests in its inbox, and is served after other connections.
    Ready(Box<Connection>),
    /// Its request is in flight: served at this moment, or by a worker, which has the connection.
    Busy,
    /// Its response waits for the client to read.
    Writing(Box<Connection>),
    /// Its last response was sent; further input is discarded.
    Lingering(Box<Connection>),
}

/// The events that the epoll set reports of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// The socket is not in the set.
    Unregistered,
    /// Input when some arrives, and the end of it.
    Read,
    /// As [`Read`](Self::Read), but input has been reported and not received: it is reported again only if the interest
    /// is set again.
    Stale,
    /// Input, for as long as there is some.
    Discard,
    /// Room for output, for as long as there is some.
    Write,
    /// Nothing but a reset, once.
    Nothing,
}

impl Interest {
    /// Notes that input was reported and not received.
    pub(super) fn make_stale(&mut self) {
        if *self == Interest::Read {
            *self = Interest::Stale;
        }
    }
}

/// Queues of slots. All in a queue have the same time, so the order of arrival is that of the deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Waits for a head: least recently used first.
    Idle,
    Lingering,
}

#[derive(Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

/// The slots.
pub(super) struct Slots {
    all: Vec<Slot>,
    free: u32,
    used: usize,
    /// The generation of the next connection.
    generation: u32,
    queues: [Ends; 2],
}

impl Slots {
    pub(super) fn new() -> Slots {
        let empty = Ends { first: NONE, last: NONE };
        Slots { all: Vec::new(), free: NONE, used: 0, generation: 0, queues: [empty; 2] }
    }

    /// Takes a slot for a new connection; its state is [`State::Busy`] until it is set.
    pub(super) fn insert(&mut self, now: Instant, socket: Arc<Socket>) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.used += 1;
        let slot = Slot {
            generation: self.generation,
            state: State::Busy,
            interest: Interest::Unregistered,
            since: now,
            timer: None,
            long_head: None,
            socket: Some(socket),
            queue: None,
            previous: NONE,
            next: NONE,
        };
        if self.free == NONE {
            self.all.push(slot);
            return u32::try_from(self.all.len() - 1).unwrap_or(NONE); // so many descriptors cannot be open
        }
        let number = self.free;
        self.free = self.all[number as usize].next;
        self.all[number as usize] = slot;
        number
    }

    /// Frees a slot. Its number stays valid until [`Slots::release_memory`].
    pub(super) fn remove(&mut self, number: u32) {
        self.dequeue(number);
        self.used -= 1;
        let slot = &mut self.all[number as usize];
        slot.state = State::Free;
        slot.socket = None;
        slot.next = self.free;
        self.free = number;
    }

    /// Frees memory if no connection is left. Numbers of slots and pending events are invalid afterwards.
    pub(super) fn release_memory(&mut self) {
        if self.used == 0 && self.all.len() > MAX_RETAINED {
            self.all = Vec::new();
            self.free = NONE;
        }
    }

    /// The key of a connection's events.
    pub(super) fn key(&self, number: u32) -> u64 {
        u64::from(self.all[number as usize].generation) << 32 | u64::from(number)
    }

    /// The slot of a key, if the connection is still the same.
    pub(super) fn find(&self, key: u64) -> Option<u32> {
        let number = u32::try_from(key & u64::from(u32::MAX)).unwrap_or(NONE);
        let slot = self.all.get(number as usize)?;
        let is_same = u64::from(slot.generation) == key >> 32 && !matches!(slot.state, State::Free);
        is_same.then_some(number)
    }

    pub(super) fn get(&mut self, number: u32) -> &mut Slot {
        &mut self.all[number as usize]
    }

    /// Puts a slot at the end of a queue, whichever it was in.
    pub(super) fn enqueue(&mut self, number: u32, queue: Queue) {
        if self.queues[queue as usize].last == number {
            return;
        }
        self.dequeue(number);
        let last = std::mem::replace(&mut self.queues[queue as usize].last, number);
        let slot = &mut self.all[number as usize];
        (slot.queue, slot.previous, slot.next) = (Some(queue), last, NONE);
        match self.all.get_mut(last as usize) {
            Some(before) => before.next = number,
            None => self.queues[queue as usize].first = number,
        }
    }

    /// Takes a slot out of its queue.
    pub(super) fn dequeue(&mut self, number: u32) {
        let slot = &mut self.all[number as usize];
        let Some(queue) = slot.queue.take() else { return };
        let (previous, next) = (slot.previous, slot.next);
        let ends = &mut self.queues[queue as usize];
        match self.all.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => ends.first = next,
        }
        match self.all.get_mut(next as usize) {
            Some(after) => after.previous = previous,
            None => ends.last = previous,
        }
    }

    /// Whether something ends the wait of this connection: its queue, or a timer.
    pub(super) fn has_deadline(&self, number: u32) -> bool {
        let slot = &self.all[number as usize];
        slot.queue.is_some() || slot.timer.is_some()
    }

    /// The slot that has been in a queue for the longest, and since when.
    pub(super) fn first(&self, queue: Queue) -> Option<(u32, Instant)> {
        let number = self.queues[queue as usize].first;
        self.all.get(number as usize).map(|slot| (number, slot.since))
    }

    /// The slots of all connections.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        let used = self.all.iter().enumerate().filter(|(_, slot)| !matches!(slot.state, State::Free));
        used.filter_map(|(number, _)| u32::try_from(number).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn socket() -> Arc<Socket> {
        let (one, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Arc::new(Socket::new(one.into()))
    }

    /// The slots of a queue, in order; it is empty afterwards.
    fn drain(slots: &mut Slots, queue: Queue) -> Vec<u32> {
        let mut all = Vec::new();
        while let Some((number, _)) = slots.first(queue) {
            slots.dequeue(number);
            all.push(number);
        }
        all
    }

    #[test]
    fn a_key_is_of_one_connection_and_of_no_other_in_the_same_slot() {
        let (mut slots, now) = (Slots::new(), Instant::now());
        let first = slots.insert(now, socket());
        let key = slots.key(first);
        assert_eq!(slots.find(key), Some(first));
        slots.remove(first);
        assert_eq!(slots.find(key), None);
        let second = slots.insert(now, socket());
        assert_eq!((second, slots.find(key)), (first, None));
        assert_eq!(slots.find(slots.key(second)), Some(second));
        assert_eq!([slots.find(u64::MAX), slots.find(7)], [None, None]);
    }

    #[test]
    fn queues_keep_their_order_whatever_leaves_them() {
        let (mut slots, now) = (Slots::new(), Instant::now());
        let all: Vec<_> = (0..5).map(|n| slots.insert(now + Duration::from_secs(n), socket())).collect();
        for number in &all {
            slots.enqueue(*number, Queue::Idle);
        }
        assert_eq!(slots.first(Queue::Idle), Some((all[0], now)));
        slots.enqueue(all[0], Queue::Idle); // used again
        slots.enqueue(all[4], Queue::Lingering);
        slots.dequeue(all[2]);
        slots.dequeue(all[2]);
        slots.remove(all[3]);
        assert_eq!(drain(&mut slots, Queue::Idle), [all[1], all[0]]);
        assert_eq!(drain(&mut slots, Queue::Lingering), [all[4]]);
        assert_eq!(slots.numbers().count(), 4);
    }

    #[test]
    fn the_memory_of_many_connections_is_freed_once_all_have_left_and_the_last_one_was_handled() {
        let (mut slots, now, socket) = (Slots::new(), Instant::now(), socket());
        let all: Vec<_> = (0..=MAX_RETAINED).map(|_| slots.insert(now, Arc::clone(&socket))).collect();
        for number in &all {
            slots.remove(*number);
        }
        assert!(
            matches!(slots.get(all[MAX_RETAINED]).state, State::Free),
            "as a receiver does that has just closed it"
        );
        slots.release_memory();
        assert_eq!(slots.all.capacity(), 0);
        let again = slots.insert(now, socket);
        assert_eq!(slots.find(slots.key(again)), Some(again));
    }
}
