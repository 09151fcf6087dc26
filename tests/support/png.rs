//! Decodes the images that `--screen` writes.

/// A PNG image with 16 colours whose data is stored without compression.
pub struct Image {
    /// The size in pixels.
    pub width: u32,
    pub height: u32,
    palette: Vec<[u8; 3]>,
    /// The rows, each after the number of its filter.
    data: Vec<u8>,
}

impl Image {
    pub fn decode(png: &[u8]) -> Self {
        let (mut rest, mut chunks) = (&png[8..], Vec::new());
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            chunks.push((&rest[4..8], &rest[8..8 + length]));
            rest = &rest[12 + length..];
        }
        let chunk = |kind: &[u8; 4]| chunks.iter().find(|(of, _)| of == kind).unwrap().1;
        let size = |at: usize| u32::from_be_bytes(chunk(b"IHDR")[at..at + 4].try_into().unwrap());
        let (mut stream, mut data) = (&chunk(b"IDAT")[2..], Vec::new());
        loop {
            let (last, length) = (stream[0], usize::from(u16::from_le_bytes([stream[1], stream[2]])));
            data.extend(&stream[5..5 + length]);
            stream = &stream[5 + length..];
            if last == 1 {
                break;
            }
        }
        Self { width: size(0), height: size(4), palette: chunk(b"PLTE").as_chunks().0.to_vec(), data }
    }

    /// The colours in a cell.
    pub fn colours(&self, row: usize, column: usize) -> std::collections::BTreeSet<[u8; 3]> {
        let row_of = |line: usize| &self.data[321 * (16 * row + line) + 1 + 4 * column..][..4];
        let pixels = (0..16).flat_map(|line| row_of(line).iter().flat_map(|byte| [byte >> 4, byte & 0xf]));
        pixels.map(|index| self.palette[usize::from(index)]).collect()
    }
}
