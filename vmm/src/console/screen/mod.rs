//! The text screen of a PC as a picture of one moment: 25 rows of 80 cells, with colours and a cursor. It becomes text, a
//! PNG image, or the sequences that show it on a terminal.
//!
//! The cells come from the guest. Each byte becomes a character of code page 437, so no control character of a guest
//! reaches a terminal.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

pub(crate) mod code_page;
pub(crate) mod panel;
mod png;
pub(crate) mod view;

/// The number of cells in a row.
pub const COLUMNS: usize = 80;
/// The number of rows.
pub const ROWS: usize = 25;
/// The number of cells.
pub(crate) const CELLS: usize = COLUMNS * ROWS;

/// The 16 colours after power-on, each as red, green and blue.
pub(crate) const DEFAULT_PALETTE: Palette = [
    [0x00, 0x00, 0x00],
    [0x00, 0x00, 0xaa],
    [0x00, 0xaa, 0x00],
    [0x00, 0xaa, 0xaa],
    [0xaa, 0x00, 0x00],
    [0xaa, 0x00, 0xaa],
    [0xaa, 0x55, 0x00],
    [0xaa, 0xaa, 0xaa],
    [0x55, 0x55, 0x55],
    [0x55, 0x55, 0xff],
    [0x55, 0xff, 0x55],
    [0x55, 0xff, 0xff],
    [0xff, 0x55, 0x55],
    [0xff, 0x55, 0xff],
    [0xff, 0xff, 0x55],
    [0xff, 0xff, 0xff],
];

/// The 16 colours of a screen.
pub(crate) type Palette = [[u8; 3]; 16];

/// One cell: a character of code page 437, and its attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) character: u8,
    pub(crate) attribute: u8,
}

impl Cell {
    /// An empty cell: a blank in light grey on black.
    pub(crate) const EMPTY: Self = Self { character: b' ', attribute: 0x07 };

    /// True if nothing of the character can be seen. The background may have a colour.
    fn is_blank(self) -> bool {
        matches!(self.character, 0 | b' ' | 0xff)
    }
}

/// The text screen of a PC at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screen {
    /// [`CELLS`] cells.
    cells: Vec<Cell>,
    /// The cell with the cursor. `None` if the cursor is off, or outside the screen.
    cursor: Option<usize>,
    palette: Palette,
    /// Set if bit 7 of an attribute makes its cell blink. Otherwise it makes the background bright.
    blinks: bool,
}

/// The colours of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    foreground: u8,
    background: u8,
    blinks: bool,
}

impl Screen {
    /// Creates a screen from the bytes of its cells, each a character and an attribute. Missing cells are empty.
    pub(crate) fn new(bytes: &[u8], cursor: Option<usize>, palette: Palette, blinks: bool) -> Self {
        let cell = |cell: &[u8]| match *cell {
            [character, attribute] => Cell { character, attribute },
            _ => Cell::EMPTY,
        };
        let mut cells: Vec<_> = bytes.chunks(2).take(CELLS).map(cell).collect();
        cells.resize(CELLS, Cell::EMPTY);
        Self { cells, cursor: cursor.filter(|cursor| *cursor < CELLS), palette, blinks }
    }

    /// The cells row by row.
    fn rows(&self) -> impl DoubleEndedIterator<Item = &[Cell]> {
        self.cells.chunks(COLUMNS)
    }

    /// True if nothing can be seen: no cell has a visible character, or a background other than black.
    pub fn is_blank(&self) -> bool {
        !self.cells.iter().any(|cell| self.is_seen(*cell))
    }

    /// True if a cell has a visible character, or a background other than black. Some games draw with backgrounds alone.
    fn is_seen(&self, cell: Cell) -> bool {
        !cell.is_blank() || self.look(cell.attribute).background != 0
    }

    /// The screen as lines of text, in UTF-8. Blanks at the ends of the lines and empty lines at the end are left out. A
    /// blank screen has no lines.
    pub fn text(&self) -> String {
        let line = |row: &[Cell]| {
            let text: String = row.iter().map(|cell| code_page::character(cell.character)).collect();
            text.trim_end().to_string()
        };
        let mut lines: Vec<String> = self.rows().map(line).collect();
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }

    /// The screen as a PNG image of 640 by 400 pixels.
    pub fn png(&self) -> Vec<u8> {
        png::image(self)
    }

    fn look(&self, attribute: u8) -> Look {
        let (foreground, background) = (attribute & 0xf, attribute >> 4);
        match self.blinks {
            true => Look { foreground, background: background & 7, blinks: background & 8 != 0 },
            false => Look { foreground, background, blinks: false },
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
pub(crate) mod tests {
    use super::*;

    /// A screen with these lines, in light grey on black, and the cursor at a cell.
    pub(crate) fn screen(lines: &[&str], cursor: Option<usize>) -> Screen {
        let mut bytes = [b' ', 0x07].repeat(CELLS);
        for (row, line) in lines.iter().enumerate() {
            for (column, byte) in line.bytes().enumerate() {
                bytes[2 * (row * COLUMNS + column)] = byte;
            }
        }
        Screen::new(&bytes, cursor, DEFAULT_PALETTE, true)
    }

    #[test]
    fn the_text_is_trimmed_and_has_no_control_characters() {
        assert_eq!(screen(&[], None).text(), "");
        assert!(screen(&[], None).is_blank() && !screen(&["x"], None).is_blank());
        let block = Screen::new(&[b' ', 0x17], None, DEFAULT_PALETTE, true);
        assert!(!block.is_blank() && block.text().is_empty(), "a blank in blue is seen");
        assert_eq!(screen(&["", "  hello  ", "", "\x1b[31m\x07\x7f"], None).text(), "\n  hello\n\n←[31m•⌂\n");
        let all: Vec<u8> = (0..=255).flat_map(|character| [character, 0x07]).collect();
        let text = Screen::new(&all, None, DEFAULT_PALETTE, true).text();
        assert!(!text.replace('\n', "").chars().any(char::is_control));
        assert_eq!(Screen::new(&[0; 4000], None, DEFAULT_PALETTE, true).text(), "");
    }

    #[test]
    fn too_few_or_too_many_bytes_and_a_wrong_cursor_make_a_screen() {
        for bytes in [0, 1, 3, 4000, 5001] {
            let screen = Screen::new(&vec![b'x'; bytes], Some(usize::MAX), DEFAULT_PALETTE, false);
            assert_eq!((screen.cells.len(), screen.cursor), (CELLS, None));
        }
    }

    #[test]
    fn bit_7_of_an_attribute_blinks_or_brightens_the_background() {
        let mut screen = screen(&[], None);
        assert_eq!(screen.look(0x9e), Look { foreground: 14, background: 1, blinks: true });
        screen.blinks = false;
        assert_eq!(screen.look(0x9e), Look { foreground: 14, background: 9, blinks: false });
    }
}
