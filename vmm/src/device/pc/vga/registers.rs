//! The sets of registers of a VGA: those behind an index port, and the colours of the DAC.

/// The registers in mode 3, 80 by 25 cells of text (IBM PS/2 Hardware Interface Technical Reference, "BIOS Initialization
/// Values").
pub(super) const MODE_3: Mode = Mode {
    miscellaneous: 0x67,
    sequencer: [0x03, 0x00, 0x03, 0x00, 0x02],
    crtc: [
        0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00, 0x9c,
        0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
    ],
    graphics: [0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x0e, 0x00, 0xff],
    attributes: [
        0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x0c,
        0x00, 0x0f, 0x08, 0x00,
    ],
};

/// The values of all registers in a mode.
pub(super) struct Mode {
    pub(super) miscellaneous: u8,
    pub(super) sequencer: [u8; 5],
    pub(super) crtc: [u8; 25],
    pub(super) graphics: [u8; 9],
    pub(super) attributes: [u8; 21],
}

/// Registers behind an index port and a data port. An index without a register reads as 0, and its writes have no effect.
#[derive(Debug)]
pub(super) struct Indexed<const N: usize> {
    index: u8,
    registers: [u8; N],
}

impl<const N: usize> Indexed<N> {
    pub(super) fn new(registers: [u8; N]) -> Self {
        Self { index: 0, registers }
    }

    pub(super) fn index(&self) -> u8 {
        self.index
    }

    pub(super) fn select(&mut self, index: u8) {
        self.index = index;
    }

    /// The register with this index.
    pub(super) fn at(&self, index: u8) -> u8 {
        self.registers.get(usize::from(index)).copied().unwrap_or(0)
    }

    pub(super) fn read(&self) -> u8 {
        self.at(self.index)
    }

    pub(super) fn write(&mut self, byte: u8) {
        if let Some(register) = self.registers.get_mut(usize::from(self.index)) {
            *register = byte;
        }
    }
}

/// The 256 colours. Each has three parts of 6 bits.
#[derive(Debug)]
pub(super) struct Dac {
    colours: [[u8; 3]; 256],
    mask: u8,
    index: u8,
    /// The part of the colour that is next.
    part: usize,
    is_reading: bool,
}

impl Default for Dac {
    fn default() -> Self {
        let mut colours = [[0; 3]; 256];
        for (index, colour) in (0u8..64).zip(&mut colours) {
            // The colours of an EGA: each part has a bit for two thirds, and one for a third.
            *colour = [2, 1, 0].map(|bit| {
                let part = |at: u8, value: u8| if index >> at & 1 == 1 { value } else { 0 };
                part(bit, 0x2a) | part(bit.saturating_add(3), 0x15)
            });
        }
        Self { colours, mask: 0xff, index: 0, part: 0, is_reading: false }
    }
}

impl Dac {
    /// A colour in 8 bits for each part.
    pub(super) fn colour(&self, index: u8) -> [u8; 3] {
        let colour = self.colours.get(usize::from(index & self.mask)).copied().unwrap_or([0; 3]);
        colour.map(|part| part << 2 | part >> 4)
    }

    pub(super) fn mask(&self) -> u8 {
        self.mask
    }

    pub(super) fn set_mask(&mut self, mask: u8) {
        self.mask = mask;
    }

    /// 3 after the index for reads was written, and 0 after that for writes.
    pub(super) fn state(&self) -> u8 {
        if self.is_reading { 3 } else { 0 }
    }

    pub(super) fn index(&self) -> u8 {
        self.index
    }

    pub(super) fn begin_read(&mut self, index: u8) {
        (self.index, self.part, self.is_reading) = (index, 0, true);
    }

    pub(super) fn begin_write(&mut self, index: u8) {
        (self.index, self.part, self.is_reading) = (index, 0, false);
    }

    pub(super) fn read(&mut self) -> u8 {
        let colour = self.colours.get(usize::from(self.index));
        let byte = colour.and_then(|colour| colour.get(self.part)).copied().unwrap_or(0);
        self.advance();
        byte
    }

    pub(super) fn write(&mut self, byte: u8) {
        let colour = self.colours.get_mut(usize::from(self.index));
        if let Some(part) = colour.and_then(|colour| colour.get_mut(self.part)) {
            *part = byte & 0x3f;
        }
        self.advance();
    }

    fn advance(&mut self) {
        self.part = self.part.saturating_add(1);
        if self.part == 3 {
            (self.part, self.index) = (0, self.index.wrapping_add(1));
        }
    }
}
