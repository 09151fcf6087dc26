//! The key that asks for a core of the running guest.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The keys Ctrl-A c of a console. The console's thread presses it, and the thread that writes cores waits for it.
#[derive(Clone, Debug, Default)]
pub struct CoreKey(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    pressed: bool,
    woken: bool,
}

impl CoreKey {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses the key. Pressing it again before it is seen has no further effect.
    pub fn press(&self) {
        self.lock().pressed = true;
        self.0.changed.notify_all();
    }

    /// Ends a wait without the key.
    pub fn wake(&self) {
        self.lock().woken = true;
        self.0.changed.notify_all();
    }

    /// Waits for the key, for [`wake`](Self::wake), or for the end of `limit`. Returns true if the key was pressed.
    pub fn wait(&self, limit: Option<Duration>) -> bool {
        let nothing = |state: &mut State| !state.pressed && !state.woken;
        let mut state = match limit {
            Some(limit) => {
                let waited = self.0.changed.wait_timeout_while(self.lock(), limit, nothing);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.0.changed.wait_while(self.lock(), nothing).unwrap_or_else(PoisonError::into_inner),
        };
        std::mem::take(&mut *state).pressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_key_is_seen_once_and_a_wait_ends_without_it() {
        let key = CoreKey::default();
        assert!(!key.wait(Some(Duration::from_millis(1))));
        let presser = key.clone();
        let thread = thread::spawn(move || presser.press());
        assert!(key.wait(None));
        thread.join().unwrap();
        key.wake();
        assert!(!key.wait(None), "woken without the key");
        assert!(!key.wait(Some(Duration::from_millis(1))), "the key was pressed once");
    }
}
