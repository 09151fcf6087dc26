//! The view of a guest's screen during a run: reads the screen at intervals, and shows it if the output is a terminal.

use super::panel::Panel;
use super::{Screen, panel};
use crate::console::output::Output;
use crate::error::Error;
use crate::exit::Stop;
use crate::host::ThreadKind;
use crate::host::{self, EventFd, event};
use crate::shutdown::Worker;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// The time between two looks at the screen.
const INTERVAL: Duration = Duration::from_millis(50);

/// A function that reads the screen. `None` if it shows no text.
pub(crate) type Source = Box<dyn FnMut() -> Option<Screen> + Send>;

/// A function that returns the size of the terminal.
type Size = Box<dyn FnMut() -> panel::TerminalSize + Send>;

/// The view of one screen.
pub(crate) struct ScreenView {
    source: Source,
    output: Output,
    size: Size,
    /// `None` if the output is not a terminal.
    panel: Option<Panel>,
    /// Set once the screen had a visible character.
    is_used: bool,
}

impl ScreenView {
    /// Creates a view of the screen that `source` reads. It is shown if `is_terminal` is set.
    pub(crate) fn new(source: Source, output: Output, is_terminal: bool) -> Self {
        let size = Box::new(|| {
            let (columns, rows) = host::terminal::output_size().unwrap_or((80, 24));
            panel::TerminalSize { rows, columns }
        });
        Self { source, output, size, panel: is_terminal.then(Panel::default), is_used: false }
    }

    /// Shows what has changed. Breaks with the end of the run if the output fails.
    fn look(&mut self) -> ControlFlow<Stop> {
        match (self.source)() {
            Some(screen) => self.show(&screen),
            None => ControlFlow::Continue(()),
        }
    }

    /// Shows the screen for the last time, and gives the whole terminal back. Returns the screen, and a failure of the
    /// output. The screen is `None` if the guest has not used it, or shows no text there.
    fn finish(mut self) -> (Option<Screen>, ControlFlow<Stop>) {
        let screen = (self.source)();
        let shown = screen.as_ref().map_or(ControlFlow::Continue(()), |screen| self.show(screen));
        let closing = self.panel.as_mut().map(Panel::close).unwrap_or_default();
        let closed =
            if closing.is_empty() { ControlFlow::Continue(()) } else { self.output.draw(closing.as_bytes()) };
        host::terminal::panel_is_open(false);
        let is_used = self.is_used;
        (screen.filter(|_| is_used), if shown.is_break() { shown } else { closed })
    }

    fn show(&mut self, screen: &Screen) -> ControlFlow<Stop> {
        self.is_used = self.is_used || !screen.is_blank();
        let Some(panel) = self.panel.as_mut().filter(|_| self.is_used) else {
            return ControlFlow::Continue(());
        };
        let (size, output) = ((self.size)(), &self.output);
        let drawn = host::terminal::draw_panel(|was_closed| {
            if was_closed {
                panel.forget();
            }
            match panel.show(screen, size) {
                drawing if drawing.is_empty() => ControlFlow::Continue(()),
                drawing => {
                    host::terminal::panel_is_open(true);
                    output.draw(drawing.as_bytes())
                }
            }
        });
        drawn.unwrap_or(ControlFlow::Continue(()))
    }
}

/// A view during a run. A thread shows the screen at intervals if the output is a terminal; without one nothing is needed
/// before the end. Dropping this ends the thread.
pub(crate) struct RunningView {
    /// `None` if a thread has the view.
    view: Option<ScreenView>,
    thread: Option<(Worker<ScreenView>, Arc<EventFd>)>,
    output: Output,
}

impl RunningView {
    /// Starts the thread of a view that is shown.
    ///
    /// # Errors
    /// The host has no thread or file descriptor left.
    pub(crate) fn start(view: ScreenView) -> Result<Self, Error> {
        let output = view.output.clone();
        if view.panel.is_none() {
            return Ok(Self { view: Some(view), thread: None, output });
        }
        let stop = Arc::new(event().map_err(Error::host("eventfd"))?);
        let ended = stop.clone();
        let body = move || watch(view, &ended);
        let thread = Worker::spawn("screen", ThreadKind::Console, "starting the thread of the screen", body)?;
        Ok(Self { view: None, thread: Some((thread, stop)), output })
    }

    /// Shows the screen for the last time. Returns it; `None` if the guest has not used it.
    pub(crate) fn finish(mut self) -> Option<Screen> {
        let (screen, shown) = self.stop()?.finish();
        if let ControlFlow::Break(stop) = shown {
            log::warn!("the screen of the guest is not shown completely: {stop}");
        }
        screen
    }

    /// Ends the thread, and returns its view.
    fn stop(&mut self) -> Option<ScreenView> {
        let Some((thread, stop)) = self.thread.take() else { return self.view.take() };
        host::signal(&stop);
        let view = thread.join(&self.output.deadline());
        if view.is_none() {
            log::error!("the thread of the screen panicked; this is a bug in the VMM");
        }
        view
    }
}

impl Drop for RunningView {
    fn drop(&mut self) {
        if let Some(view) = self.stop() {
            let _ = view.finish();
        }
    }
}

/// Shows the screen at intervals until `stop` is signalled.
fn watch(mut view: ScreenView, stop: &EventFd) -> ScreenView {
    let mut shows = true;
    loop {
        // After a failure of the output there is nothing to show.
        shows = shows && view.look().is_continue();
        match host::wait_any([Some(host::borrow(stop))], Some(INTERVAL)) {
            Ok([false]) => {}
            Ok([true]) | Err(_) => return view,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::screen;
    use super::*;
    use std::sync::{Arc, Mutex};

    fn view(is_terminal: bool) -> (ScreenView, Arc<Mutex<Option<Screen>>>, crate::console::output::Captured) {
        let now = Arc::new(Mutex::new(Some(screen(&[], None))));
        let (output, captured) = Output::captured();
        let source = now.clone();
        let mut view = ScreenView::new(Box::new(move || source.lock().unwrap().clone()), output, is_terminal);
        view.size = Box::new(|| panel::TerminalSize { rows: 40, columns: 100 });
        (view, now, captured)
    }

    #[test]
    fn nothing_is_drawn_before_the_guest_uses_the_screen() {
        let (mut view, now, captured) = view(true);
        assert!(view.look().is_continue());
        assert_eq!(captured.bytes(), b"");
        *now.lock().unwrap() = Some(screen(&["hello"], None));
        assert!(view.look().is_continue());
        assert!(String::from_utf8(captured.bytes()).unwrap().contains("hello"));
        // A graphics mode leaves the last text.
        *now.lock().unwrap() = None;
        let drawn = captured.bytes().len();
        assert!(view.look().is_continue());
        assert_eq!(captured.bytes().len(), drawn);
        let (last, answer) = view.finish();
        assert!(last.is_none() && answer.is_continue());
        assert!(captured.bytes().ends_with(b"\x1b[?25h\r\n\x1b[J"));
    }

    #[test]
    fn without_a_terminal_the_screen_is_only_returned() {
        let (mut used, now, captured) = view(false);
        *now.lock().unwrap() = Some(screen(&["hello"], None));
        assert!(used.look().is_continue());
        assert_eq!(used.finish().0.unwrap().text(), "hello\n");
        assert_eq!(captured.bytes(), b"");
        let (unused, ..) = view(false);
        assert_eq!(unused.finish().0, None);
    }
}
