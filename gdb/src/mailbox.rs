//! A queue of events with a limit, from several threads to one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most events that wait.
const LIMIT: usize = 16;

/// The queue.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    waiting: Mutex<Waiting<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting<T> {
    events: VecDeque<T>,
    closed: bool,
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        let waiting = Waiting { events: VecDeque::with_capacity(LIMIT), closed: false };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, and waits until there is room for it. Returns false if the queue is closed.
    pub(crate) fn put(&self, event: T) -> bool {
        let full = |waiting: &mut Waiting<T>| waiting.events.len() >= LIMIT && !waiting.closed;
        let waited = self.changed.wait_while(self.lock(), full);
        let mut waiting = waited.unwrap_or_else(PoisonError::into_inner);
        if waiting.closed {
            return false;
        }
        waiting.events.push_back(event);
        drop(waiting);
        self.changed.notify_all();
        true
    }

    /// Adds an event if there is room for it.
    pub(crate) fn try_put(&self, event: T) {
        let mut waiting = self.lock();
        if waiting.events.len() < LIMIT && !waiting.closed {
            waiting.events.push_back(event);
            drop(waiting);
            self.changed.notify_all();
        }
    }

    /// Takes the oldest event. Waits for one until the time is over.
    pub(crate) fn take(&self, limit: Duration) -> Option<T> {
        let none = |waiting: &mut Waiting<T>| waiting.events.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), limit, none);
        let event = waited.unwrap_or_else(PoisonError::into_inner).0.events.pop_front();
        if event.is_some() {
            self.changed.notify_all();
        }
        event
    }

    /// Takes no more events.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn events_arrive_in_order_and_a_full_queue_waits() {
        let mailbox = Arc::new(Mailbox::new());
        assert_eq!(mailbox.take(SHORT), None);
        let sender = mailbox.clone();
        let thread = thread::spawn(move || (0..100).all(|event| sender.put(event)));
        assert!((0..100).all(|event| mailbox.take(LONG) == Some(event)));
        assert!(thread.join().unwrap());
        (0..100).for_each(|event| mailbox.try_put(event));
        assert_eq!((0..100).map_while(|_| mailbox.take(SHORT)).count(), LIMIT);
    }

    #[test]
    fn a_sender_that_waits_is_told_of_the_end() {
        let mailbox = Arc::new(Mailbox::new());
        (0..LIMIT).for_each(|event| mailbox.try_put(event));
        let sender = mailbox.clone();
        let thread = thread::spawn(move || sender.put(99));
        mailbox.close();
        assert!(!thread.join().unwrap() && !mailbox.put(100));
    }
}
