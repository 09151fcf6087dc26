//! The screen as a PNG image with 16 colours. Its data is stored without compression, which needs no library: 128 KiB.
//!
//! PNG specification (RFC 2083), section 3 (chunks) and section 4 (IHDR, PLTE, IDAT, IEND); zlib (RFC 1950); deflate
//! (RFC 1951), section 3.2.4 (stored blocks).

use super::{COLUMNS, ROWS, Screen};

/// The height of a character in pixels. Its width is 8.
const HEIGHT: usize = 16;
/// The bitmaps of the 256 characters: a byte for each row of pixels, its highest bit at the left. `font-licence.txt`
/// has the licence.
static FONT: &[u8; 256 * HEIGHT] = include_bytes!("font.bin");
/// The rows of pixels that show the cursor.
const CURSOR: std::ops::RangeInclusive<usize> = 13..=14;
/// The most bytes of a stored block.
const BLOCK: usize = 0xffff;

/// The image.
pub(super) fn image(screen: &Screen) -> Vec<u8> {
    const WIDTH: u32 = 8 * COLUMNS as u32;
    const TALL: u32 = (HEIGHT * ROWS) as u32;
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    // Four bits for each pixel, which is an index into the palette.
    let header = [&WIDTH.to_be_bytes()[..], &TALL.to_be_bytes(), &[4, 3, 0, 0, 0]].concat();
    chunk(&mut png, *b"IHDR", &header);
    chunk(&mut png, *b"PLTE", screen.palette.as_flattened());
    chunk(&mut png, *b"IDAT", &stored(&pixels(screen)));
    chunk(&mut png, *b"IEND", &[]);
    png
}

/// The rows of pixels, each after a byte for its filter, which is none.
fn pixels(screen: &Screen) -> Vec<u8> {
    let mut pixels = Vec::new();
    for (row, cells) in screen.rows().enumerate() {
        for line in 0..HEIGHT {
            pixels.push(0);
            for (column, cell) in cells.iter().enumerate() {
                let look = screen.look(cell.attribute);
                let here = row.saturating_mul(COLUMNS).saturating_add(column);
                let bits = match screen.cursor == Some(here) && CURSOR.contains(&line) {
                    true => 0xff,
                    false => glyph(cell.character, line),
                };
                let colour = |bit: u8| if bits & bit != 0 { look.foreground } else { look.background };
                pixels.extend([0x80, 0x20, 0x08, 0x02].map(|left| colour(left) << 4 | colour(left >> 1)));
            }
        }
    }
    pixels
}

/// A row of pixels of a character.
fn glyph(character: u8, line: usize) -> u8 {
    let at = usize::from(character).saturating_mul(HEIGHT).saturating_add(line);
    FONT.get(at).copied().unwrap_or(0)
}

/// Adds a chunk: its length, its type, its data and their checksum.
fn chunk(png: &mut Vec<u8>, kind: [u8; 4], data: &[u8]) {
    png.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    png.extend(kind);
    png.extend(data);
    png.extend(crc(kind.iter().chain(data)).to_be_bytes());
}

/// A zlib stream of stored blocks.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let mut blocks = data.chunks(BLOCK).peekable();
    while let Some(block) = blocks.next() {
        let length = u16::try_from(block.len()).unwrap_or(0);
        stream.push(u8::from(blocks.peek().is_none()));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    stream.extend(adler(data).to_be_bytes());
    stream
}

/// The checksum of a zlib stream (RFC 1950, section 8).
fn adler(data: &[u8]) -> u32 {
    let step = |(a, b): (u32, u32), byte: &u8| {
        let a = a.wrapping_add(u32::from(*byte)) % 65_521;
        (a, b.wrapping_add(a) % 65_521)
    };
    let (a, b) = data.iter().fold((1, 0), step);
    b << 16 | a
}

/// The checksum of a chunk (RFC 2083, section 15).
fn crc<'a>(data: impl Iterator<Item = &'a u8>) -> u32 {
    let step = |crc: u32, byte: &u8| {
        let bit = |crc: u32, _| if crc & 1 == 1 { 0xedb8_8320 ^ crc >> 1 } else { crc >> 1 };
        (0..8).fold(crc ^ u32::from(*byte), bit)
    };
    !data.fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::super::tests::screen;
    use super::*;

    #[test]
    fn checksums_are_those_of_the_specifications() {
        assert_eq!(crc(b"123456789".iter()), 0xcbf4_3926);
        assert_eq!(crc(b"IEND".iter()), 0xae42_6082);
        assert_eq!(adler(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn pixels_have_the_colours_of_their_cells() {
        let mut screen = screen(&["\u{1}"], Some(81));
        screen.cells[0] = super::super::Cell { character: 0xdb, attribute: 0x4e };
        screen.cells[1] = super::super::Cell { character: b' ', attribute: 0x4e };
        let pixels = pixels(&screen);
        assert_eq!(pixels.len(), 400 * 321);
        // A full block, then a blank: yellow, red.
        assert_eq!(pixels[..10], [0, 0xee, 0xee, 0xee, 0xee, 0x44, 0x44, 0x44, 0x44, 0x00]);
        let cursor = 321 * (16 + 13) + 1 + 4;
        assert_eq!(pixels[cursor..cursor + 5], [0x77, 0x77, 0x77, 0x77, 0x00]);
    }

    #[test]
    fn the_image_has_its_chunks_and_its_size() {
        let png = image(&screen(&["x"], None));
        assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
        assert_eq!(png[16..29], [0, 0, 2, 128, 0, 0, 1, 144, 4, 3, 0, 0, 0]);
        assert!(png.ends_with(b"IEND\xae\x42\x60\x82"));
        let (mut at, mut kinds) = (8, Vec::new());
        while at < png.len() {
            let length = u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
            kinds.push(&png[at + 4..at + 8]);
            at += length + 12;
        }
        assert_eq!(kinds, [b"IHDR", b"PLTE", b"IDAT", b"IEND"]);
    }
}
