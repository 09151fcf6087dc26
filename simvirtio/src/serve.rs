//! The loop of a device that sleeps until its driver rings the doorbell.
//!
//! It is here, apart from the host's calls that it makes, so that `make model` can run it with every interleaving of
//! driver and device.

use core::ops::ControlFlow;

/// A device that its driver wakes with an event. An event is a counter: the driver increments it, and the device clears
/// it.
pub trait Sleeper {
    /// The reason why the device ends the loop.
    type Stop;

    /// Returns true if the loop must end.
    fn is_over(&self) -> bool;
    /// Clears the event.
    fn drain(&mut self);
    /// Processes what the driver has queued. Returns true if there was anything to do.
    ///
    /// # Errors
    /// The device ends the loop.
    fn scan(&mut self) -> ControlFlow<Self::Stop, bool>;
    /// Waits until the event is signalled, without clearing it. It may return earlier, and must return after
    /// [`is_over`](Self::is_over) has become true.
    ///
    /// # Errors
    /// The device ends the loop.
    fn sleep(&mut self) -> ControlFlow<Self::Stop>;
}

/// Scans each time the driver has signalled the event, until the loop is over. No signal is lost: the event is cleared
/// before the scan, so a driver that stores after the scan signals an event that was cleared, and the device does not
/// sleep.
///
/// # Errors
/// The device ends the loop.
pub fn serve<S: Sleeper>(device: &mut S) -> ControlFlow<S::Stop> {
    while !device.is_over() {
        device.drain();
        if !device.scan()? {
            device.sleep()?;
        }
    }
    device.drain();
    ControlFlow::Continue(())
}
