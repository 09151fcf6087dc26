//! Programs of ring 0 with random descriptor tables, gates and page tables, which they load, change and use.

mod assembler;
mod code;
mod descriptors;
mod gates;
mod pages;
mod system;
mod transfers;

use crate::generate::Generator;
use crate::layout::{DATA, STACK};
use crate::program::{Config, Program};
use fastrand::Rng;
use softcpu::{cr0, cr4, efer, seg};

/// True for the configurations that have such programs.
pub fn is_extended(config: Config) -> bool {
    matches!(config, Config::Protected | Config::Protected16 | Config::Long)
}

/// Makes the tables, the first registers and the code of such a program.
pub fn extend(program: &mut Program, generator: &Generator, rng: &mut Rng) {
    descriptors::fill(program, rng);
    if rng.bool() {
        gates::fill(program, rng);
    }
    if program.id.config == Config::Long {
        if rng.bool() {
            pages::four_levels(program, rng);
        }
    } else {
        pages::two_levels(program, rng);
    }
    segments(program, rng);
    control(program, rng);
    pointers(program, rng);
    code::write(program, generator, rng);
}

/// Segment registers that hold random descriptors from the start.
fn segments(program: &mut Program, rng: &mut Rng) {
    let is_64 = program.id.config.is_64();
    for index in [seg::ES, seg::DS, seg::FS, seg::GS, seg::SS] {
        if rng.u8(..if index == seg::SS { 6 } else { 4 }) != 0 {
            continue;
        }
        let selector = descriptors::data_selector(program, rng) & !7;
        let raw = descriptors::raw(program, selector);
        let segment = descriptors::segment(raw, selector);
        let is_data = segment.code_or_data && segment.kind & 8 == 0;
        let fits =
            if index == seg::SS { is_data && segment.kind & 2 != 0 && segment.dpl == 0 } else { is_data };
        if !fits || !segment.present {
            continue;
        }
        if index == seg::SS && !is_64 {
            let address = STACK + 0x800 + rng.u64(..0x400) * 4;
            program.state.gpr[4] = address.wrapping_sub(segment.base) & 0xffff_ffff;
        }
        program.state.segments[index] = segment;
    }
}

/// Control registers that are not as usual.
fn control(program: &mut Program, rng: &mut Rng) {
    let state = &mut program.state;
    if rng.u8(..8) == 0 {
        state.cr0 ^= *crate::values::pick(rng, &[cr0::WP, cr0::AM, cr0::TS, cr0::EM, cr0::NE, cr0::MP]);
    }
    if rng.u8(..8) == 0 {
        state.cr4 ^= *crate::values::pick(rng, &[cr4::PGE, cr4::DE, cr4::PSE, cr4::TSD, cr4::OSFXSR]);
    }
    if rng.u8(..32) == 0 {
        state.efer ^= efer::NXE;
    }
}

/// Registers with addresses of pages that the random tables map.
fn pointers(program: &mut Program, rng: &mut Rng) {
    if program.id.config.is_segmented() {
        return;
    }
    for number in [3, 6, 7, 12, 14] {
        if rng.u8(..6) == 0 {
            program.state.gpr[number] = pages::address(program.id.config, rng);
        }
    }
    if rng.u8(..24) == 0 {
        program.state.gpr[4] = pages::address(program.id.config, rng) & !7;
    }
    if rng.u8(..24) == 0 {
        program.state.gpr[4] = DATA + rng.u64(..0x3000);
    }
}
