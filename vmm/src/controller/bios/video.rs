//! Int 10h: the text screen. The text is in the memory of the screen, with its cursor in the data area, and what a guest
//! prints as a teletype (functions 0Eh and 13h) is also text of the machine's output.
//!
//! IBM PS/2 and Personal Computer BIOS Interface Technical Reference, "Interrupt 10h".

use super::Bios;
use super::call::Call;
use crate::console::screen::code_page;
use crate::device::bus::Device;
use crate::exit::Stop;
use crate::memory::Gpa;
use std::ops::ControlFlow;
use std::sync::PoisonError;

/// The address of the text screen.
pub(super) const SCREEN: u64 = 0xb8000;
/// The size of a page of the screen in bytes.
const PAGE: u64 = 0x1000;
/// The number of pages.
const PAGES: u8 = 8;
const COLUMNS: u8 = 80;
const ROWS: u8 = 25;
/// The size of the memory of the screen in bytes.
const SCREEN_BYTES: usize = 0x8000;
/// A blank cell: a space, light grey on black.
const BLANK: u16 = 0x0720;
/// Graphics with 320 x 200 bytes, and their address.
const GRAPHICS: u8 = 0x13;
const PIXELS: u64 = 0xa0000;
const PIXEL_BYTES: usize = 320 * 200;

/// Places in the data area.
const MODE: u64 = 0x449;
const CURSORS: u64 = 0x450;
const SHAPE: u64 = 0x460;
const ACTIVE_PAGE: u64 = 0x462;
const PAGE_START: u64 = 0x44e;

/// The characters of a teletype that move the cursor.
const BELL: u8 = 7;
const BACKSPACE: u8 = 8;
const LINE_FEED: u8 = 10;
const RETURN: u8 = 13;

/// The cells of an empty page.
pub(super) fn blank_page() -> Vec<u8> {
    BLANK.to_le_bytes().repeat(usize::from(COLUMNS).saturating_mul(ROWS.into()))
}

/// The memory of the screen, as far as it was printed: nothing.
pub(super) fn no_characters() -> Vec<u8> {
    vec![b' '; SCREEN_BYTES]
}

/// A place on the screen.
#[derive(Clone, Copy)]
struct Cursor {
    column: u8,
    row: u8,
}

impl Bios {
    /// Answers the call, and shows its effect in the registers of the screen. `None` if there is no such function.
    pub(super) fn video_call(&mut self, call: &mut Call<'_>) -> Option<ControlFlow<Stop>> {
        let answer = self.video_function(call);
        self.show_cursor(call);
        answer
    }

    /// Sets the registers of the screen: the first cell, the cursor and its shape (CRT controller, registers 0Ah to 0Fh).
    fn show_cursor(&self, call: &Call<'_>) {
        /// The offset of the CRT controller from the first port of the device.
        const CRTC: u64 = 0x14;
        let Some(screen) = &self.screen else { return };
        let start = call.word(PAGE_START) / 2;
        let at = cursor(call, call.byte(ACTIVE_PAGE) % PAGES);
        let cells = u16::from(at.row).wrapping_mul(COLUMNS.into()).wrapping_add(at.column.into());
        let place = start.wrapping_add(cells);
        let [end, first] = call.word(SHAPE).to_le_bytes();
        let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        let values = [start.to_be_bytes(), place.to_be_bytes()].concat();
        for (register, value) in (0x0au64..).zip([first, end].into_iter().chain(values)) {
            let _ = screen.write(CRTC, 2, u64::from(value) << 8 | register);
        }
    }

    /// Switches the registers of the screen between text and graphics (graphics controller, register 6).
    fn show_mode(&self, is_graphics: bool) {
        const GRAPHICS_CONTROLLER: u64 = 0x0e;
        let value = if is_graphics { 0x0506 } else { 0x0e06 };
        if let Some(screen) = &self.screen {
            let _ =
                screen.lock().unwrap_or_else(PoisonError::into_inner).write(GRAPHICS_CONTROLLER, 2, value);
        }
    }

    /// True if all characters on the screen were also printed.
    pub(crate) fn has_printed_screen(&self) -> bool {
        let mut cells = vec![0; SCREEN_BYTES];
        self.prints
            && self.memory.read(Gpa(SCREEN), &mut cells)
            && cells
                .iter()
                .step_by(2)
                .zip(self.printed.iter().step_by(2))
                .all(|(now, printed)| now == printed || matches!((now, printed), (0 | b' ', 0 | b' ')))
    }

    fn video_function(&mut self, call: &mut Call<'_>) -> Option<ControlFlow<Stop>> {
        let page = call.bh() % PAGES;
        match call.ah() {
            0x00 => return self.set_mode(call),
            0x01 => call.set_word(SHAPE, call.cx()),
            0x02 => set_cursor(call, page, Cursor { column: call.dl(), row: call.dh() }),
            0x03 => {
                let Cursor { column, row } = cursor(call, page);
                call.set_dx(u16::from(row) << 8 | u16::from(column));
                call.set_cx(call.word(SHAPE));
            }
            0x05 if call.al() < PAGES => {
                call.set_byte(ACTIVE_PAGE, call.al());
                call.set_word(PAGE_START, u16::from(call.al()).wrapping_mul(PAGE as u16));
            }
            0x06 => self.scroll(call, true),
            0x07 => self.scroll(call, false),
            0x08 => {
                let cell = call.word(cell(page, cursor(call, page)));
                call.set_ax(cell);
            }
            0x09 => write_cells(call, page, true),
            0x0a => write_cells(call, page, false),
            // Colours, which have no effect here.
            0x0b | 0x10 => {}
            0x0c | 0x0d => pixel(call),
            0x0e => {
                let character = call.al();
                let active = call.byte(ACTIVE_PAGE) % PAGES;
                return Some(self.print_at_cursor(call, active, character, None));
            }
            0x0f => {
                let (mode, page) = (call.byte(MODE), call.byte(ACTIVE_PAGE));
                call.set_ax(u16::from(COLUMNS) << 8 | u16::from(mode));
                call.set_bh(page);
            }
            0x13 => return Some(self.write_string(call)),
            0x12 if call.bl() == 0x10 => {
                // Colour, 256 KiB.
                call.set_bx(0x0003);
                call.set_cx(0x0009);
            }
            0x1a if call.al() == 0 => {
                // A VGA with a colour screen.
                call.set_ax(0x001a);
                call.set_bx(0x0008);
            }
            // VESA: there are no such functions. Programs ask for them.
            0x4f => call.set_ax(0x0100),
            _ => return None,
        }
        Some(ControlFlow::Continue(()))
    }

    /// Function 0: clears the screen.
    fn set_mode(&mut self, call: &mut Call<'_>) -> Option<ControlFlow<Stop>> {
        let (mode, keeps) = (call.al() & 0x7f, call.al() & 0x80 != 0);
        if !matches!(mode, 0..=3 | 7 | GRAPHICS) {
            return None;
        }
        call.set_byte(MODE, mode);
        self.show_mode(mode == GRAPHICS);
        call.set_byte(ACTIVE_PAGE, 0);
        call.set_word(PAGE_START, 0);
        for page in 0..PAGES {
            set_cursor(call, page, Cursor { column: 0, row: 0 });
        }
        if mode == GRAPHICS {
            if !keeps {
                call.store(PIXELS, &[0; PIXEL_BYTES]);
            }
        } else if !keeps {
            self.printed = no_characters();
            let cells = blank_page();
            (0..PAGES).for_each(|page| {
                call.store(page_start(page), &cells);
            });
        }
        call.set_al(0x30);
        Some(self.end_line())
    }

    /// Function 13h: the string in ES:BP, with CX characters. AL: bit 0 moves the cursor, bit 1: the string has attributes.
    fn write_string(&mut self, call: &mut Call<'_>) -> ControlFlow<Stop> {
        let page = call.bh() % PAGES;
        let (moves, has_attributes) = (call.al() & 1 != 0, call.al() & 2 != 0);
        let before = cursor(call, page);
        set_cursor(call, page, Cursor { column: call.dl(), row: call.dh() });
        let mut offset = call.bp();
        let mut next = |call: &Call<'_>| {
            let byte = call.byte(call.in_es(offset));
            offset = offset.wrapping_add(1);
            byte
        };
        for _ in 0..call.cx() {
            let character = next(call);
            let attribute = if has_attributes { next(call) } else { call.bl() };
            self.print_at_cursor(call, page, character, Some(attribute))?;
            // Each of the 65,535 characters may scroll the screen, which takes seconds.
            self.deadline.must_end().map_or(ControlFlow::Continue(()), ControlFlow::Break)?;
        }
        if !moves {
            set_cursor(call, page, before);
        }
        ControlFlow::Continue(())
    }

    /// Writes a character as a teletype does: the cursor moves, and the screen scrolls. The attribute stays if none is given.
    fn teletype(&mut self, call: &mut Call<'_>, page: u8, character: u8, attribute: Option<u8>) {
        let mut at = cursor(call, page);
        match character {
            BELL => return,
            BACKSPACE => at.column = at.column.saturating_sub(1),
            LINE_FEED => at.row = at.row.saturating_add(1),
            RETURN => at.column = 0,
            _ => {
                let place = cell(page, at);
                call.set_byte(place, character);
                if let Some(printed) = index(place).and_then(|at| self.printed.get_mut(at)) {
                    *printed = character;
                }
                if let Some(attribute) = attribute {
                    call.set_byte(place.wrapping_add(1), attribute);
                }
                at.column = at.column.saturating_add(1);
                if at.column >= COLUMNS {
                    at = Cursor { column: 0, row: at.row.saturating_add(1) };
                }
            }
        }
        if at.row >= ROWS {
            let attribute = (call.word(cell(page, Cursor { column: 0, row: ROWS - 1 })) >> 8) as u8;
            let window = Window { page, top: 0, left: 0, bottom: ROWS - 1, right: COLUMNS - 1 };
            window.scroll(call, &mut self.printed, 1, true, attribute);
            at.row = ROWS - 1;
        }
        set_cursor(call, page, at);
    }

    /// Functions 6 and 7: AL lines, or all for 0, in the window from CX to DX.
    fn scroll(&mut self, call: &mut Call<'_>, up: bool) {
        let page = call.byte(ACTIVE_PAGE) % PAGES;
        let (bottom, right) = (call.dh().min(ROWS - 1), call.dl().min(COLUMNS - 1));
        let window = Window { page, top: call.ch(), left: call.cl(), bottom, right };
        if window.top > bottom || window.left > right || call.byte(MODE) == GRAPHICS {
            return;
        }
        let lines = if call.al() == 0 { ROWS } else { call.al() };
        window.scroll(call, &mut self.printed, lines, up, call.bh());
    }

    /// Writes a character as a teletype does, to the screen and to the output. Text for another row than that of the text before it
    /// begins a new line of the output.
    fn print_at_cursor(
        &mut self,
        call: &mut Call<'_>,
        page: u8,
        character: u8,
        attribute: Option<u8>,
    ) -> ControlFlow<Stop> {
        let row = cursor(call, page).row;
        let is_other = self.text_row.is_some_and(|before| before != row);
        self.teletype(call, page, character, attribute);
        self.text_row = Some(cursor(call, page).row);
        if is_other && character >= b' ' {
            self.end_line()?;
        }
        self.print(character)
    }

    /// Ends the line of the output, if it has text.
    fn end_line(&mut self) -> ControlFlow<Stop> {
        match std::mem::replace(&mut self.line_has_text, false) {
            true => self.output.print(b"\r\n"),
            false => ControlFlow::Continue(()),
        }
    }

    /// Prints a character of a teletype to the output.
    fn print(&mut self, character: u8) -> ControlFlow<Stop> {
        if !self.prints {
            return ControlFlow::Continue(());
        }
        self.line_has_text = character != LINE_FEED && (self.line_has_text || character >= b' ');
        match character {
            0 => ControlFlow::Continue(()),
            1..=0x7f => self.output.print(&[character]),
            _ => {
                let mut text = [0; 4];
                self.output.print(code_page::character(character).encode_utf8(&mut text).as_bytes())
            }
        }
    }
}

fn page_start(page: u8) -> u64 {
    SCREEN.wrapping_add(u64::from(page % PAGES).wrapping_mul(PAGE))
}

/// The address of a cell.
fn cell(page: u8, at: Cursor) -> u64 {
    let cells = u64::from(at.row).wrapping_mul(COLUMNS.into()).wrapping_add(at.column.into());
    page_start(page).wrapping_add(cells.wrapping_mul(2) & (PAGE - 1))
}

/// The offset of a cell in the memory of the screen.
fn index(cell: u64) -> Option<usize> {
    usize::try_from(cell.checked_sub(SCREEN)?).ok()
}

fn cursor(call: &Call<'_>, page: u8) -> Cursor {
    let [column, row] = call.word(CURSORS.wrapping_add(u64::from(page).wrapping_mul(2))).to_le_bytes();
    Cursor { column, row }
}

fn set_cursor(call: &mut Call<'_>, page: u8, Cursor { column, row }: Cursor) {
    let place = CURSORS.wrapping_add(u64::from(page).wrapping_mul(2));
    call.set_word(place, u16::from_le_bytes([column, row]));
}

/// Functions 9 and 0Ah: CX times the character in AL, from the cursor, which stays.
fn write_cells(call: &mut Call<'_>, page: u8, with_attribute: bool) {
    if call.byte(MODE) == GRAPHICS {
        return;
    }
    let start = cell(page, cursor(call, page)).wrapping_sub(page_start(page));
    // More would only write the same cells again.
    for count in 0..u64::from(call.cx()).min(PAGE / 2) {
        let place = page_start(page).wrapping_add(start.wrapping_add(count.wrapping_mul(2)) & (PAGE - 1));
        call.set_byte(place, call.al());
        if with_attribute {
            call.set_byte(place.wrapping_add(1), call.bl());
        }
    }
}

/// A part of the screen, with its last row and column.
struct Window {
    page: u8,
    top: u8,
    left: u8,
    bottom: u8,
    right: u8,
}

impl Window {
    /// Moves the rows up or down by `lines`, and fills the free ones.
    fn scroll(&self, call: &mut Call<'_>, printed: &mut [u8], lines: u8, up: bool, attribute: u8) {
        let blank = u16::from_le_bytes([b' ', attribute]);
        let height = self.bottom.saturating_sub(self.top).saturating_add(1);
        for line in 0..height {
            let row = if up { self.top.saturating_add(line) } else { self.bottom.saturating_sub(line) };
            let from = if up { row.checked_add(lines) } else { row.checked_sub(lines) };
            let from = from.filter(|from| (self.top..=self.bottom).contains(from));
            for column in self.left..=self.right {
                let to = cell(self.page, Cursor { column, row });
                let from = from.map(|from| cell(self.page, Cursor { column, row: from }));
                let value = from.map_or(blank, |from| call.word(from));
                let character = from.and_then(index).and_then(|at| printed.get(at).copied());
                call.set_word(to, value);
                if let Some(printed) = index(to).and_then(|at| printed.get_mut(at)) {
                    *printed = character.unwrap_or(b' ');
                }
            }
        }
    }
}

/// Functions 0Ch and 0Dh: the pixel at CX, DX.
fn pixel(call: &mut Call<'_>) {
    let place = u64::from(call.dx()).wrapping_mul(320).wrapping_add(call.cx().into());
    if call.byte(MODE) != GRAPHICS || place >= PIXEL_BYTES as u64 {
        return;
    }
    let place = PIXELS.wrapping_add(place);
    match call.ah() {
        0x0c if call.al() & 0x80 != 0 => call.set_byte(place, call.byte(place) ^ call.al() & 0x7f),
        0x0c => call.set_byte(place, call.al()),
        _ => call.set_al(call.byte(place)),
    }
}
