//! The registers of a VGA in text mode, on ports 0x3C0 to 0x3DF. The text itself is plain memory from 0xB8000, which this
//! device does not see: a thread of the machine reads it, at the place and with the colours that the registers say.
//!
//! IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem"; FreeVGA, "VGA Chipset Reference". The registers
//! hold what the BIOS of a PC leaves in mode 3: 80 by 25 cells, with blinking.

mod registers;

use crate::console::screen::Palette;
use crate::device::bus::{Device, DeviceName};
use crate::exit::Stop;
use registers::{Dac, Indexed, MODE_3};
use std::ops::ControlFlow;

/// The first port.
pub const PORT: u16 = 0x3c0;
/// The number of ports.
pub const PORTS: u16 = 0x20;

/// Miscellaneous output: the CRT controller and the status are at 0x3D4 to 0x3DA, not at 0x3B4 to 0x3BA.
const COLOUR_PORTS: u8 = 1 << 0;
/// CRT controller: the end of the vertical retrace, whose highest bit protects the registers 0 to 7.
const RETRACE_END: u8 = 0x11;
const PROTECT: u8 = 1 << 7;
/// CRT controller: the register whose bit 4 is not protected.
const OVERFLOW: u8 = 7;
const LINE_COMPARE: u8 = 1 << 4;
/// CRT controller: the first and the last row of pixels of the cursor. Bit 5 of the first one switches the cursor off.
const CURSOR_START: u8 = 0x0a;
const CURSOR_END: u8 = 0x0b;
const CURSOR_OFF: u8 = 1 << 5;
/// CRT controller: the first cell of the screen, and the cell with the cursor, each in two bytes, the high one first.
const START: u8 = 0x0c;
const CURSOR: u8 = 0x0e;
/// Attribute controller: the mode, and its bits.
const ATTRIBUTE_MODE: u8 = 0x10;
const BLINK: u8 = 1 << 3;
const SHORT_PALETTE: u8 = 1 << 7;
/// Attribute controller: the high bits of all colours.
const COLOUR_SELECT: u8 = 0x14;
/// Attribute controller, address: the screen is on, and the palette cannot be changed.
const PALETTE_LOCKED: u8 = 1 << 5;
/// Graphics controller: its register whose bit 0 selects a graphics mode.
const MISCELLANEOUS: u8 = 6;

/// The picture that the registers select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The first cell, counted from 0xB8000.
    pub(crate) start: u16,
    /// The cell with the cursor, counted from the first one. `None` if the cursor is off.
    pub(crate) cursor: Option<u16>,
    pub(crate) palette: Palette,
    /// Set if bit 7 of an attribute makes its cell blink.
    pub(crate) blinks: bool,
    /// Set in a graphics mode, which shows no text.
    pub(crate) is_graphics: bool,
}

/// The registers.
#[derive(Debug)]
pub struct Vga {
    miscellaneous: u8,
    feature: u8,
    attribute_address: u8,
    /// Set if the next write to 0x3C0 is data.
    attribute_data: bool,
    attributes: [u8; 21],
    sequencer: Indexed<5>,
    graphics: Indexed<9>,
    crtc: Indexed<25>,
    dac: Dac,
    /// Counts the reads of the status, whose retrace bits change with it.
    status_reads: u8,
}

impl Default for Vga {
    fn default() -> Self {
        Self {
            miscellaneous: MODE_3.miscellaneous,
            feature: 0,
            attribute_address: PALETTE_LOCKED,
            attribute_data: false,
            attributes: MODE_3.attributes,
            sequencer: Indexed::new(MODE_3.sequencer),
            graphics: Indexed::new(MODE_3.graphics),
            crtc: Indexed::new(MODE_3.crtc),
            dac: Dac::default(),
            status_reads: 0,
        }
    }
}

impl Vga {
    /// The picture that the registers select.
    pub(crate) fn view(&self) -> View {
        let word =
            |register| u16::from_be_bytes([self.crtc.at(register), self.crtc.at(register.wrapping_add(1))]);
        let (first, last) = (self.crtc.at(CURSOR_START), self.crtc.at(CURSOR_END));
        let is_on = first & CURSOR_OFF == 0 && first & 0x1f <= last & 0x1f;
        let cells = word(CURSOR).checked_sub(word(START)).filter(|_| is_on);
        View {
            start: word(START),
            cursor: cells,
            palette: std::array::from_fn(|index| self.colour(index)),
            blinks: self.attributes.get(usize::from(ATTRIBUTE_MODE)).is_some_and(|mode| mode & BLINK != 0),
            is_graphics: self.graphics.at(MISCELLANEOUS) & 1 != 0,
        }
    }

    /// Colour `index` of 16, through the palette and the DAC.
    fn colour(&self, index: usize) -> [u8; 3] {
        let register = |at: u8| self.attributes.get(usize::from(at)).copied().unwrap_or(0);
        let entry = self.attributes.get(index & 0xf).copied().unwrap_or(0);
        let select = register(COLOUR_SELECT);
        let low = match register(ATTRIBUTE_MODE) & SHORT_PALETTE != 0 {
            true => entry & 0x0f | (select & 3) << 4,
            false => entry & 0x3f,
        };
        self.dac.colour(low | (select & 0x0c) << 4)
    }

    fn read_port(&mut self, port: u16) -> u8 {
        let has_colour_ports = self.miscellaneous & COLOUR_PORTS != 0;
        match port {
            0x3c0 => self.attribute_address,
            0x3c1 => self.attributes.get(usize::from(self.attribute_address & 0x1f)).copied().unwrap_or(0),
            // Input status 0: a colour monitor is connected.
            0x3c2 => 0x10,
            // The video subsystem is enabled.
            0x3c3 => 1,
            0x3c4 => self.sequencer.index(),
            0x3c5 => self.sequencer.read(),
            0x3c6 => self.dac.mask(),
            0x3c7 => self.dac.state(),
            0x3c8 => self.dac.index(),
            0x3c9 => self.dac.read(),
            0x3ca => self.feature,
            0x3cc => self.miscellaneous,
            0x3ce => self.graphics.index(),
            0x3cf => self.graphics.read(),
            0x3d4 if has_colour_ports => self.crtc.index(),
            0x3d5 if has_colour_ports => self.crtc.read(),
            0x3da if has_colour_ports => self.status(),
            _ => 0xff,
        }
    }

    /// Input status 1: bit 0 is set outside the picture, bit 3 in the vertical retrace. A read also makes the next write to
    /// 0x3C0 an address.
    fn status(&mut self) -> u8 {
        self.attribute_data = false;
        self.status_reads = self.status_reads.wrapping_add(1);
        match self.status_reads % 4 {
            1 => 0x01,
            2 | 3 => 0x09,
            _ => 0x00,
        }
    }

    fn write_port(&mut self, port: u16, byte: u8) {
        let has_colour_ports = self.miscellaneous & COLOUR_PORTS != 0;
        match port {
            0x3c0 => self.write_attribute(byte),
            0x3c2 => self.miscellaneous = byte,
            0x3c4 => self.sequencer.select(byte & 0x07),
            0x3c5 => self.sequencer.write(byte),
            0x3c6 => self.dac.set_mask(byte),
            0x3c7 => self.dac.begin_read(byte),
            0x3c8 => self.dac.begin_write(byte),
            0x3c9 => self.dac.write(byte),
            0x3ce => self.graphics.select(byte & 0x0f),
            0x3cf => self.graphics.write(byte),
            0x3d4 if has_colour_ports => self.crtc.select(byte & 0x3f),
            0x3d5 if has_colour_ports => self.write_crtc(byte),
            0x3da if has_colour_ports => self.feature = byte & 3,
            _ => {}
        }
    }

    fn write_attribute(&mut self, byte: u8) {
        let is_data = self.attribute_data;
        self.attribute_data = !is_data;
        if !is_data {
            self.attribute_address = byte & 0x3f;
            return;
        }
        let index = usize::from(self.attribute_address & 0x1f);
        let is_locked = index < 0x10 && self.attribute_address & PALETTE_LOCKED != 0;
        if let Some(register) = self.attributes.get_mut(index).filter(|_| !is_locked) {
            *register = if index < 0x10 { byte & 0x3f } else { byte };
        }
    }

    fn write_crtc(&mut self, byte: u8) {
        let index = self.crtc.index();
        let is_protected = index <= OVERFLOW && self.crtc.at(RETRACE_END) & PROTECT != 0;
        match (is_protected, index) {
            (false, _) => self.crtc.write(byte),
            (true, OVERFLOW) => self.crtc.write(self.crtc.at(OVERFLOW) & !LINE_COMPARE | byte & LINE_COMPARE),
            (true, _) => {}
        }
    }
}

/// The ports of an access of `size` bytes at `offset`. A word for an index port is the index and its data.
fn ports(offset: u64, size: u8) -> impl Iterator<Item = u16> {
    let first = u16::try_from(offset).ok().filter(|offset| *offset < PORTS);
    let ports = first.map(|offset| offset..offset.saturating_add(size.into()).min(PORTS));
    ports.unwrap_or(0..0).map(|offset| PORT.saturating_add(offset))
}

impl Device for Vga {
    fn read(&mut self, offset: u64, size: u8) -> ControlFlow<Stop, u64> {
        let mut value = [0xff; 8];
        for (port, byte) in ports(offset, size).zip(&mut value) {
            *byte = self.read_port(port);
        }
        ControlFlow::Continue(u64::from_le_bytes(value))
    }

    fn write(&mut self, offset: u64, size: u8, data: u64) -> ControlFlow<Stop> {
        for (port, byte) in ports(offset, size).zip(data.to_le_bytes()) {
            self.write_port(port, byte);
        }
        ControlFlow::Continue(())
    }

    fn name(&self, offset: u64) -> DeviceName {
        DeviceName::register(
            "VGA",
            match offset {
                0x00 | 0x01 => "attributes",
                0x04 | 0x05 => "sequencer",
                0x06..=0x09 => "colours",
                0x0e | 0x0f => "graphics",
                0x14 => "CRTC index",
                0x15 => "CRTC data",
                0x1a => "status",
                _ => "registers",
            },
        )
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests;
