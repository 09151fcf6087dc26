//! The text screen of a machine: its place in memory, and the view of it during a run.

use crate::boot::Image;
use crate::console::output::Output;
use crate::console::screen::view::{RunningView, ScreenView};
use crate::console::screen::{CELLS, Cell, Screen};
use crate::device::pc::vga::Vga;
use crate::error::Error;
use crate::memory::{Gpa, GuestMemory};
use std::sync::{Arc, Mutex, PoisonError};

/// The memory of the screen. Each cell takes two bytes: a character and its attribute.
const MEMORY: Gpa = Gpa(0xb_8000);
const MEMORY_SIZE: u64 = 0x8000;
/// The number of cells in that memory. The screen continues at its start.
const MEMORY_CELLS: u64 = MEMORY_SIZE / 2;

/// The screen of a machine.
pub(super) struct GuestScreen {
    pub(super) memory: GuestMemory,
    pub(super) vga: Arc<Mutex<Vga>>,
    /// The output is a terminal, which shows the screen during a run.
    pub(super) is_terminal: bool,
}

/// The screen during a run.
pub(super) struct RunningScreen(RunningView);

impl GuestScreen {
    /// The contents of the memory of the screen after power-on: empty cells. `None` if the image covers a part of it.
    pub(super) fn initial(image: &Image) -> Option<(Gpa, Vec<u8>)> {
        let end = MEMORY.0.saturating_add(MEMORY_SIZE);
        let cells = || [Cell::EMPTY.character, Cell::EMPTY.attribute].repeat(MEMORY_CELLS as usize);
        (!image.overlaps(MEMORY.0, end)).then(|| (MEMORY, cells()))
    }

    /// Begins a run. If the output is a terminal, a thread shows the screen there.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(super) fn start(&self, output: &Output) -> Result<RunningScreen, Error> {
        let (memory, vga) = (self.memory.clone(), self.vga.clone());
        let mut warned = false;
        let source = move || read(&memory, &vga, &mut warned);
        let view = ScreenView::new(Box::new(source), output.clone(), self.is_terminal);
        Ok(RunningScreen(RunningView::start(view)?))
    }
}

impl RunningScreen {
    /// Ends the run. Returns the screen; `None` if the guest has not used it.
    pub(super) fn finish(self) -> Option<Screen> {
        self.0.finish()
    }
}

/// The screen at this moment. `None` in a graphics mode.
fn read(memory: &GuestMemory, vga: &Mutex<Vga>, warned: &mut bool) -> Option<Screen> {
    let view = vga.lock().unwrap_or_else(PoisonError::into_inner).view();
    if view.is_graphics {
        if !std::mem::replace(warned, true) {
            log::warn!(
                "the guest has switched its screen to a graphics mode, whose pixels are not shown: only text is"
            );
        }
        return None;
    }
    // The screen may go past the end of its memory, and then continues at its start.
    let start = u64::from(view.start) % MEMORY_CELLS;
    let first = MEMORY_CELLS.saturating_sub(start).min(CELLS as u64);
    let mut bytes = vec![0; CELLS.saturating_mul(2)];
    let (head, tail) = bytes.split_at_mut_checked(first.saturating_mul(2) as usize)?;
    let is_read =
        memory.read(Gpa(MEMORY.0.saturating_add(start.saturating_mul(2))), head) && memory.read(MEMORY, tail);
    is_read.then(|| Screen::new(&bytes, view.cursor.map(usize::from), view.palette, view.blinks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    fn screen() -> (GuestMemory, Mutex<Vga>) {
        let memory = GuestMemory::new(&[(Gpa(0), 1 << 20)]).unwrap();
        let (start, cells) = GuestScreen::initial(&Image::default()).unwrap();
        memory.write(start, &cells).unwrap();
        (memory, Mutex::new(Vga::default()))
    }

    #[test]
    fn the_start_address_selects_the_text_and_wraps() {
        let (memory, vga) = screen();
        memory.write(Gpa(0xb_fffe), b"a\x07").unwrap();
        memory.write(MEMORY, b"b\x07c\x07").unwrap();
        let read = || read(&memory, &vga, &mut false).unwrap().text();
        assert_eq!(read(), "bc\n");
        // 0x3FFF, then the same with bits that no memory has.
        for high in [0x3f, 0xff] {
            for data in [high << 8 | 0x0c, 0xff0d] {
                assert!(vga.lock().unwrap().write(0x14, 2, data).is_continue());
            }
            assert_eq!(read(), "abc\n");
        }
    }

    #[test]
    fn a_graphics_mode_and_a_machine_without_that_memory_show_no_text() {
        let (memory, vga) = screen();
        assert!(read(&GuestMemory::none(), &vga, &mut false).is_none());
        let mut warned = false;
        assert!(vga.lock().unwrap().write(0x0e, 2, 0x0506).is_continue());
        assert!(read(&memory, &vga, &mut warned).is_none() && warned);
    }
}
