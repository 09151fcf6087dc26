//! The screen on a terminal: a panel at its bottom. The text of the guest's other consoles scrolls above it.
//!
//! The panel uses the sequences of the VT100 (ECMA-48): the cursor's position is saved and restored around each
//! drawing, and a scroll region keeps the text out of the panel. Only cells that have changed are written.

use super::{COLUMNS, Cell, DEFAULT_PALETTE, ROWS, Screen, code_page};
use std::fmt::Write;

/// The fewest rows that text keeps above the panel.
const MIN_TEXT: usize = 3;
/// The smallest terminal that gets a panel, in rows.
const MIN_TERMINAL: usize = 6;
/// The ANSI colours in the order of the PC's colours.
const ANSI: [u8; 8] = [0, 4, 2, 6, 1, 5, 3, 7];

/// The size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// The places of the text and the panel. The title is between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// The rows of the whole terminal.
    rows: usize,
    /// The columns of the panel.
    columns: usize,
    /// The rows of text above the title.
    text: usize,
    /// The rows of the panel.
    panel: usize,
}

impl Layout {
    /// The layout of a terminal. `None` if it is too small.
    fn of(size: TerminalSize) -> Option<Self> {
        let rows = usize::from(size.rows);
        let columns = usize::from(size.columns).min(COLUMNS);
        if rows < MIN_TERMINAL || columns == 0 {
            return None;
        }
        let text = rows.saturating_sub(ROWS.saturating_add(1)).max(MIN_TEXT);
        let panel = rows.saturating_sub(text).saturating_sub(1);
        Some(Self { rows, columns, text, panel })
    }
}

/// The panel of one run.
#[derive(Debug, Default)]
pub(crate) struct Panel {
    /// `None` until it is opened.
    layout: Option<Layout>,
    /// The screen that the terminal shows, and its first row in the panel. `None` if everything must be drawn.
    shown: Option<(Screen, usize)>,
}

impl Panel {
    /// The text that makes a terminal of this size show `screen`. Empty if it does so already.
    pub(crate) fn show(&mut self, screen: &Screen, size: TerminalSize) -> String {
        let mut text = String::new();
        let Some(layout) = Layout::of(size) else { return text };
        if self.layout != Some(layout) {
            text += &opening(layout, self.layout.is_some());
            (self.layout, self.shown) = (Some(layout), None);
        }
        let top = top(screen, layout.panel, self.shown.as_ref().map_or(0, |(_, top)| *top));
        let cells = self.changes(screen, layout, top);
        if !cells.is_empty() {
            // Saves the cursor, and restores it.
            text += "\x1b7";
            text += &cells;
            text += "\x1b[0m\x1b8";
            self.shown = Some((screen.clone(), top));
        }
        text
    }

    /// The panel was closed by a signal, and must be opened again.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The text that leaves the last picture above the cursor, without its empty rows at the end, and gives the whole terminal
    /// back to text. Empty if there was no panel.
    pub(crate) fn close(&mut self) -> String {
        let shown = self.shown.take();
        let Some(layout) = self.layout.take() else { return String::new() };
        let used = shown.map_or(layout.panel, |(screen, top)| screen.used_rows(top, layout.panel));
        // The rows above the panel, its title, and what is used of it.
        let last = layout.text.saturating_add(1).saturating_add(used).min(layout.rows);
        format!("\x1b[r\x1b[{last};1H\x1b[0m\x1b[?25h\r\n\x1b[J")
    }

    /// The cells that differ from those that are shown, each run of them after its position and its colours.
    fn changes(&self, screen: &Screen, layout: Layout, top: usize) -> String {
        let mut text = String::new();
        let before = self.shown.as_ref().filter(|(shown, _)| shown.has_the_colours_of(screen));
        let mut pen = Pen::default();
        for row in 0..layout.panel {
            let mut next = None;
            for column in 0..layout.columns {
                let now = screen.seen(top.saturating_add(row), column);
                let shown = before.map(|(shown, top)| shown.seen(top.saturating_add(row), column));
                if shown == Some(now) {
                    continue;
                }
                if next != Some(column) {
                    let line = layout.text.saturating_add(row).saturating_add(2);
                    // Writing to a String cannot fail.
                    let _ = write!(text, "\x1b[{line};{}H", column.saturating_add(1));
                }
                pen.draw(&mut text, screen, now);
                next = Some(column.saturating_add(1));
            }
        }
        text
    }
}

/// The text that makes room for a panel. After a change of the terminal's size it clears the terminal, whose text has
/// moved.
fn opening(layout: Layout, is_open: bool) -> String {
    let Layout { text, panel, columns, .. } = layout;
    let title = " screen ";
    let line = "─".repeat(columns.saturating_sub(title.len()).saturating_sub(2));
    let title: String = format!("──{title}{line}").chars().take(columns).collect();
    let title = format!("\x1b7\x1b[{};1H\x1b[0;2m{title}\x1b[0m\x1b8", text.saturating_add(1));
    let region = format!("\x1b[1;{text}r");
    match is_open {
        true => format!("\x1b[r\x1b[0m\x1b[2J{region}\x1b[{text};1H{title}"),
        // Moves the text up by the height of the panel, so that none is under it.
        false => {
            let height = panel.saturating_add(1);
            let room = "\x1bD".repeat(height);
            format!("\x1b[?25l{room}\x1b[{height}A\x1b7{region}\x1b8{title}")
        }
    }
}

/// The first row of the screen in a panel of `height` rows: as before, moved as little as the cursor needs to be seen.
fn top(screen: &Screen, height: usize, before: usize) -> usize {
    let last = ROWS.saturating_sub(height);
    let row = screen.cursor.and_then(|cursor| cursor.checked_div(COLUMNS)).unwrap_or(0);
    let lowest = row.saturating_add(1).saturating_sub(height);
    before.clamp(lowest.min(last), row.min(last).max(lowest.min(last)))
}

/// A cell as it is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    cell: Cell,
    has_cursor: bool,
}

impl Screen {
    fn seen(&self, row: usize, column: usize) -> Seen {
        let at = row.saturating_mul(COLUMNS).saturating_add(column);
        let cell = self.cells.get(at).copied().unwrap_or(Cell::EMPTY);
        Seen { cell, has_cursor: self.cursor == Some(at) }
    }

    /// The number of rows up to the last one that is not empty, of the `height` rows from `top` on. A background other than
    /// black counts, and the cursor does not.
    fn used_rows(&self, top: usize, height: usize) -> usize {
        let is_used = |row: &usize| {
            (0..COLUMNS).any(|column| self.is_seen(self.seen(top.saturating_add(*row), column).cell))
        };
        (0..height).rev().find(is_used).map_or(0, |row| row.saturating_add(1))
    }

    /// True if equal attributes look the same on both screens.
    fn has_the_colours_of(&self, other: &Self) -> bool {
        self.palette == other.palette && self.blinks == other.blinks
    }
}

/// The colours that the terminal writes with.
#[derive(Debug, Default)]
struct Pen {
    attribute: Option<(u8, bool)>,
}

impl Pen {
    /// Adds a cell to `text`, after its colours if they differ from those of the cell before.
    fn draw(&mut self, text: &mut String, screen: &Screen, seen: Seen) {
        let attribute = Some((seen.cell.attribute, seen.has_cursor));
        if self.attribute != attribute {
            self.attribute = attribute;
            let look = screen.look(seen.cell.attribute);
            text.push_str("\x1b[0");
            colour(text, screen, look.foreground, [30, 90, 38]);
            colour(text, screen, look.background, [40, 100, 48]);
            text.push_str(if look.blinks { ";5" } else { "" });
            text.push_str(if seen.has_cursor { ";7m" } else { "m" });
        }
        text.push(code_page::character(seen.cell.character));
    }
}

/// Adds the parameters for a colour. `codes` are those of the dark colours, of the bright ones, and of any colour.
fn colour(text: &mut String, screen: &Screen, index: u8, [dark, bright, any]: [u8; 3]) {
    let at = usize::from(index & 0xf);
    let ansi = ANSI.get(usize::from(index & 7)).copied().unwrap_or(0);
    let (now, usual) = (screen.palette.get(at), DEFAULT_PALETTE.get(at));
    // Writing to a String cannot fail.
    let _ = match now.filter(|now| Some(*now) != usual) {
        Some([red, green, blue]) => write!(text, ";{any};2;{red};{green};{blue}"),
        None => write!(text, ";{}", ansi.saturating_add(if index & 8 == 0 { dark } else { bright })),
    };
}

#[cfg(test)]
mod tests {
    use super::super::CELLS;
    use super::super::tests::screen;
    use super::*;

    const LARGE: TerminalSize = TerminalSize { rows: 40, columns: 100 };

    #[test]
    fn the_panel_is_below_the_text_at_every_size() {
        let layout =
            |rows, columns| Layout::of(TerminalSize { rows, columns }).map(|l| (l.text, l.panel, l.columns));
        assert_eq!(layout(40, 100), Some((14, 25, 80)));
        assert_eq!(layout(29, 80), Some((3, 25, 80)));
        assert_eq!(layout(24, 60), Some((3, 20, 60)));
        assert_eq!(layout(6, 1), Some((3, 2, 1)));
        assert_eq!([layout(5, 80), layout(0, 0), layout(24, 0)], [None; 3]);
        assert_eq!(layout(u16::MAX, u16::MAX), Some((65_509, 25, 80)));
    }

    #[test]
    fn only_changed_cells_are_written() {
        let mut panel = Panel::default();
        let first = panel.show(&screen(&["hello"], None), LARGE);
        assert!(first.contains("\x1b[1;14r") && first.contains("hello"), "{first:?}");
        assert_eq!(panel.show(&screen(&["hello"], None), LARGE), "");
        let second = panel.show(&screen(&["hallo", "x"], None), LARGE);
        assert_eq!(second, "\x1b7\x1b[16;2H\x1b[0;37;40ma\x1b[17;1Hx\x1b[0m\x1b8");
        let cursor = panel.show(&screen(&["hallo", "x"], Some(81)), LARGE);
        assert_eq!(cursor, "\x1b7\x1b[17;2H\x1b[0;37;40;7m \x1b[0m\x1b8");
        panel.forget();
        assert_eq!(panel.show(&screen(&["hello"], None), LARGE), first, "it is opened again");
        // The text and the title are 15 rows, and one row of the panel is used.
        assert_eq!(panel.close(), "\x1b[r\x1b[16;1H\x1b[0m\x1b[?25h\r\n\x1b[J");
        assert_eq!(panel.close(), "");
    }

    #[test]
    fn the_last_picture_has_no_empty_rows_at_its_end() {
        for (lines, cursor, end) in [
            (&[][..], None, 15),
            (&["hello"][..], None, 16),
            (&["hello", "", "x"][..], None, 18),
            (&["hello"][..], Some(3 * COLUMNS), 16),
        ] {
            let mut panel = Panel::default();
            panel.show(&screen(lines, cursor), LARGE);
            assert!(panel.close().starts_with(&format!("\x1b[r\x1b[{end};1H")), "{lines:?}");
        }
        let mut blue = screen(&["a"], None);
        blue.cells[CELLS - 1].attribute = 0x1f;
        let mut panel = Panel::default();
        panel.show(&blue, LARGE);
        assert!(panel.close().starts_with("\x1b[r\x1b[40;1H"));
        // A small terminal shows the rows around the cursor.
        let lines: Vec<String> = (0..25).map(|row| format!("line {row}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        panel.show(&screen(&lines, Some(24 * COLUMNS)), TerminalSize { rows: 24, columns: 80 });
        assert!(panel.close().starts_with("\x1b[r\x1b[24;1H"));
    }

    #[test]
    fn colours_blinking_and_a_palette_of_its_own_are_shown() {
        let mut now = screen(&["abc"], None);
        now.cells[0].attribute = 0x1c;
        now.cells[1].attribute = 0x8e;
        now.cells[2].attribute = 0x26;
        now.palette[6] = [1, 2, 3];
        let shown = Panel::default().show(&now, LARGE);
        assert!(
            shown.contains("\x1b[0;91;44ma\x1b[0;93;40;5mb\x1b[0;38;2;1;2;3;42mc\x1b[0;37;40m "),
            "{shown:?}"
        );
        let mut panel = Panel::default();
        panel.show(&screen(&["abc"], None), LARGE);
        let mut other = screen(&["abc"], None);
        other.blinks = false;
        assert!(
            panel.show(&other, LARGE).contains("abc"),
            "everything is drawn after a change of the colours"
        );
    }

    #[test]
    fn the_last_drawing_never_controls_the_terminal() {
        let all: Vec<u8> = (0..=255).flat_map(|byte| [byte, byte]).collect();
        let screen = Screen::new(&all, Some(3), DEFAULT_PALETTE, true);
        let shown = Panel::default().changes(&screen, Layout::of(LARGE).unwrap(), 0);
        // Every escape is one of the panel's own sequences.
        for part in shown.split('\x1b').skip(1) {
            let end = part.find(|c: char| !matches!(c, '[' | '0'..='9' | ';')).unwrap();
            assert!(matches!(part.as_bytes()[end], b'm' | b'H'), "{part:?}");
            assert!(!part.chars().any(char::is_control), "{part:?}");
        }
    }

    #[test]
    fn a_small_panel_follows_the_cursor() {
        let at = |row: usize| screen(&[], Some(row * COLUMNS));
        assert_eq!(top(&at(0), 20, 0), 0);
        assert_eq!(top(&at(24), 20, 0), 5);
        assert_eq!(top(&at(10), 20, 5), 5);
        assert_eq!(top(&at(3), 20, 5), 3);
        assert_eq!(top(&screen(&[], None), 20, 0), 0);
        assert_eq!(top(&at(24), 25, 7), 0);
        let small = TerminalSize { rows: 24, columns: 80 };
        let lines: Vec<String> = (0..25).map(|row| format!("line {row}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let shown = Panel::default().show(&screen(&lines, Some(24 * COLUMNS)), small);
        assert!(
            !shown.contains("line 4 ") && shown.contains("line 5 ") && shown.contains("ine 24"),
            "{shown:?}"
        );
    }

    #[test]
    fn a_new_size_draws_everything_again() {
        let mut panel = Panel::default();
        panel.show(&screen(&["hello"], None), LARGE);
        let size = TerminalSize { rows: 30, columns: 80 };
        let again = panel.show(&screen(&["hello"], None), size);
        assert!(again.starts_with("\x1b[r\x1b[0m\x1b[2J\x1b[1;4r") && again.contains("hello"), "{again:?}");
        assert_eq!(panel.show(&screen(&["hello"], None), TerminalSize { rows: 1, columns: 1 }), "");
    }
}
