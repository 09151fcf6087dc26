use crate::Cpu;
use crate::exit::{Exit, Missing};
use crate::memory::VecMemory;
use crate::state::{Fpu, cr0, cr4, flag};
use crate::testing::{finish, in_mode, long_mode, protected_mode, vector};

/// A processor whose SI is 0x5000, and which halts after the code.
fn x87(bits: u32, code: &[u8]) -> Cpu<VecMemory> {
    let mut cpu = in_mode(bits, &[code, &[0xf4]].concat());
    cpu.state.gpr[6] = 0x5000;
    cpu.state.cr4 |= cr4::OSFXSR;
    cpu.state.cr0 |= cr0::NE;
    cpu.state.fpu = Fpu {
        control: 0x27f,
        status: 0x3800,
        tag: 0b1000_0111,
        opcode: 0x123,
        instruction: 0x0045_6789_abcd,
        operand: 0x0012_3456_789a,
        registers: std::array::from_fn(|number| [0x11 * number as u8; 10]),
    };
    // R0 is zero, R1 is a denormal, R2 is a normal number, R7 is an infinity.
    cpu.state.fpu.registers[2] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
    cpu.state.fpu.registers[1] = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    cpu.state.fpu.registers[7] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff];
    cpu
}

fn written(cpu: &Cpu<VecMemory>, len: usize) -> Vec<u32> {
    let bytes = cpu.memory().read(0x5000, len);
    bytes
        .chunks(4)
        .map(|bytes| bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)))
        .collect()
}

/// SDM volume 1, figures 8-9 to 8-12.
#[test]
fn the_environment_has_four_formats() {
    const TAGS: u32 = 0xbfc9;
    // fnstenv [rsi], with the address size of each mode.
    let wide = |bits: u32| match bits {
        16 => vec![0x66, 0xd9, 0x34],
        _ => vec![0xd9, 0x36],
    };
    let narrow = |bits: u32| match bits {
        16 => vec![0xd9, 0x34],
        _ => vec![0x66, 0xd9, 0x36],
    };
    let image = |bits, code: Vec<u8>, len| {
        let mut cpu = x87(bits, &code);
        assert_eq!(finish(&mut cpu), Exit::Halted);
        assert_eq!(cpu.state.fpu.control, 0x27f);
        written(&cpu, len)
    };
    let upper = 0xffff_0000;
    let words = [upper | 0x27f, upper | 0x3800, upper | TAGS];
    for bits in [32, 64] {
        let pointers = [0x6789_abcd, 0x0123_0000, 0x3456_789a, upper];
        assert_eq!(image(bits, wide(bits), 28), [&words[..], &pointers].concat());
        let pointers = [0xabcd << 16 | TAGS, 0x789a << 16, 0];
        assert_eq!(image(bits, narrow(bits), 14), [&[0x3800_027f][..], &pointers].concat());
    }
    let pointers = [upper | 0xabcd, 0x0678_9123, upper | 0x789a, 0x0345_6000];
    assert_eq!(image(16, wide(16), 28), [&words[..], &pointers].concat());
    let pointers = [0xabcd << 16 | TAGS, 0x789a_9123, 0x6000];
    assert_eq!(image(16, narrow(16), 14), [&[0x3800_027f][..], &pointers].concat());
}

/// FRSTOR loads the state that FNSAVE stores. FNSAVE initializes the unit.
#[test]
fn frstor_loads_what_fnsave_stores() {
    for (bits, prefix, opcode, pointers) in [
        (32, &[][..], 0x123, [0x6789_abcd, 0x3456_789a]),
        (32, &[0x66], 0, [0xabcd, 0x789a]),
        (16, &[0x66], 0x123, [0x6789_abcd, 0x3456_789a]),
        (16, &[], 0x123, [0x9_abcd, 0x6_789a]),
    ] {
        let modrm = if bits == 16 { [0x34, 0x24] } else { [0x36, 0x26] };
        let code = [prefix, &[0xdd, modrm[0], 0xf4], prefix, &[0xdd, modrm[1]]].concat();
        let mut cpu = x87(bits, &code);
        let before = cpu.state.fpu;
        assert_eq!(finish(&mut cpu), Exit::Halted);
        let registers = before.registers;
        assert_eq!(cpu.state.fpu, Fpu { registers, ..Fpu::default() });
        cpu.state.fpu.registers = [[0; 10]; 8];
        assert_eq!(finish(&mut cpu), Exit::Halted);
        let [instruction, operand] = pointers;
        assert_eq!(cpu.state.fpu, Fpu { opcode, instruction, operand, ..before });
    }
}

/// SDM volume 1, tables 10-2 and 10-3; bytes and lengths as an Intel Xeon writes them.
#[test]
fn fxsave_has_the_format_of_its_mode() {
    for (bits, code, registers) in
        [(32, &[0x0f, 0xae, 0x06][..], 8), (64, &[0x0f, 0xae, 0x06], 16), (64, &[0x48, 0x0f, 0xae, 0x06], 16)]
    {
        let mut cpu = x87(bits, code);
        cpu.state.xmm = std::array::from_fn(|number| ((0x0101 * (number as u128 + 1)) << 112) | 7);
        cpu.memory().write(0x5000, &[0xcc; 512]);
        assert_eq!(finish(&mut cpu), Exit::Halted);
        let image = cpu.memory().read(0x5000, 512);
        let upper: &[u8] = if code[0] == 0x48 { &[0x45, 0, 0, 0, 0x12, 0, 0, 0] } else { &[0; 8] };
        assert_eq!(image[..8], [0x7f, 2, 0, 0x38, 0x87, 0, 0x23, 1]);
        assert_eq!(
            [&image[8..12], &image[16..20]].concat(),
            [0xcd, 0xab, 0x89, 0x67, 0x9a, 0x78, 0x56, 0x34]
        );
        assert_eq!([&image[12..16], &image[20..24]].concat(), upper);
        assert_eq!(image[24..32], [0x80, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
        // ST(0) is R7.
        assert_eq!(image[32..48], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
        assert_eq!(image[160 + 16 * registers - 2..][..3], [registers as u8, registers as u8, 0xcc]);
        assert_eq!(image[160..168], [7, 0, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn fxrstor_loads_what_fxsave_stores() {
    let mut cpu = x87(64, &[0x48, 0x0f, 0xae, 0x06, 0xf4, 0x48, 0x0f, 0xae, 0x0e]);
    cpu.state.xmm = std::array::from_fn(|number| u128::MAX / (number as u128 + 2));
    cpu.state.mxcsr = 0xffff;
    let before = cpu.state.clone();
    assert_eq!(finish(&mut cpu), Exit::Halted);
    (cpu.state.fpu, cpu.state.xmm, cpu.state.mxcsr) = (Fpu::default(), [0; 16], 0x1f80);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((&cpu.state.fpu, cpu.state.xmm), (&before.fpu, before.xmm));
    assert_eq!(cpu.state.mxcsr, 0xffff);
    // Outside of 64-bit mode XMM8 and later keep their values.
    let mut cpu = x87(32, &[0x0f, 0xae, 0x0e]);
    cpu.state.xmm = [1; 16];
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.xmm[7..9], [0, 1]);
}

/// An Intel Xeon gives these words for an image with all bits set.
#[test]
fn reserved_bits_are_dropped_and_the_summary_is_computed() {
    for (control, status, after) in
        [(0xffffu16, 0xffffu16, [0x1f7fu16, 0x7f7f]), (0, 0xffff, [0x40, 0xffff]), (0, 0x8080, [0x40, 0])]
    {
        let mut cpu = x87(64, &[0x48, 0x0f, 0xae, 0x0e]);
        cpu.memory().write(0x5000, &[control.to_le_bytes(), status.to_le_bytes()].concat());
        cpu.memory().write(0x5006, &[0xff; 18]);
        assert_eq!(finish(&mut cpu), Exit::Halted);
        let fpu = &cpu.state.fpu;
        assert_eq!(([fpu.control, fpu.status], fpu.opcode), (after, 0x7ff));
        assert_eq!((fpu.instruction, fpu.operand), (u64::MAX, u64::MAX));
    }
    let mut cpu = x87(64, &[0x48, 0x0f, 0xae, 0x0e]);
    cpu.memory().write(0x5008, &0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.state.fpu.instruction, 0xff22_3344_5566_7788);
}

#[test]
fn fxsave_and_fxrstor_check_their_operand() {
    for code in [&[0x0f, 0xae, 0x06][..], &[0x0f, 0xae, 0x0e]] {
        let mut cpu = x87(64, code);
        cpu.state.gpr[6] = 0x5008;
        assert_eq!(vector(&mut cpu), (13, Some(0)));
        // With alignment checks, the unit is 4 bytes (an Intel Xeon).
        let mut cpu = long_mode(code, 3);
        (cpu.state.gpr[6], cpu.state.rflags) = (0x5002, cpu.state.rflags | flag::AC);
        assert_eq!(vector(&mut cpu), (17, Some(0)));
        for (bit, wanted) in [(cr0::EM, 7), (cr0::TS, 7)] {
            let mut cpu = x87(64, code);
            cpu.state.cr0 |= bit;
            assert_eq!(vector(&mut cpu), (wanted, None));
        }
    }
    // A reserved bit of MXCSR: nothing is loaded.
    let mut cpu = x87(64, &[0x0f, 0xae, 0x0e]);
    cpu.memory().write(0x501a, &[1]);
    let before = cpu.state.fpu;
    assert_eq!(vector(&mut cpu), (13, Some(0)));
    assert_eq!(cpu.state.fpu, before);
    // The second page is missing: nothing is stored.
    let mut cpu = protected_mode(&[0x0f, 0xae, 0x06], 0);
    (cpu.state.gpr[6], cpu.state.segments[3].limit) = (0x5f00, 0x5fff);
    assert_eq!(vector(&mut cpu), (13, Some(0)));
    assert_eq!(cpu.memory().read(0x5f00, 32), [0; 32]);
}

#[test]
fn a_pending_exception_is_raised_by_the_next_waiting_instruction() {
    // fldcw [rsi] unmasks an exception that is noted; then wait, fldenv, frstor, emms, fldcw.
    for code in [&[0x9b][..], &[0xd9, 0x26], &[0xdd, 0x26], &[0x0f, 0x77], &[0xd9, 0x2e]] {
        let mut cpu = x87(64, &[&[0xd9, 0x2e][..], code].concat());
        cpu.state.fpu.status |= 4;
        cpu.memory().write(0x5000, &[0x3b, 0]);
        assert_eq!(vector(&mut cpu), (16, None), "{code:x?}");
        assert_eq!((cpu.state.fpu.control, cpu.state.fpu.status), (0x7b, 0xb884));
        // FERR# is not connected.
        let mut cpu = x87(64, code);
        cpu.state.cr0 &= !cr0::NE;
        cpu.state.fpu.status = 0x8081;
        assert_eq!(finish(&mut cpu), Exit::Unsupported(Missing::FpuInterrupt), "{code:x?}");
    }
    // fnstcw, fnstsw ax, fnclex and fninit do not wait.
    let mut cpu = x87(64, &[0xd9, 0x3e, 0xdf, 0xe0, 0xdb, 0xe2, 0x9b, 0xdb, 0xe3]);
    cpu.state.fpu.status = 0xb8ff;
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.gpr[0] as u16, written(&cpu, 2)), (0xb8ff, vec![0x27f]));
    assert_eq!((cpu.state.fpu.control, cpu.state.fpu.status, cpu.state.fpu.tag), (0x37f, 0, 0));
}

/// SDM volume 3, table 2-2.
#[test]
fn cr0_disturbs_x87() {
    let (em, mp, ts) = (cr0::EM, cr0::MP, cr0::TS);
    let cases: [(&[u8], u64, Option<u8>); 10] = [
        (&[0xdb, 0xe3], em, Some(7)),
        (&[0xdb, 0xe3], ts, Some(7)),
        (&[0xdf, 0xe0], em, Some(7)),
        (&[0x9b], em, None),
        (&[0x9b], ts, None),
        (&[0x9b], mp, None),
        (&[0x9b], mp | ts, Some(7)),
        (&[0x0f, 0x77], em, Some(6)),
        (&[0x0f, 0x77], ts, Some(7)),
        (&[0x0f, 0x77], mp, None),
    ];
    for (code, set, wanted) in cases {
        let mut cpu = x87(64, code);
        cpu.state.cr0 = cpu.state.cr0 & !(em | mp | ts) | set;
        match wanted {
            Some(wanted) => assert_eq!(vector(&mut cpu), (wanted, None), "{code:x?}"),
            None => assert_eq!(finish(&mut cpu), Exit::Halted, "{code:x?}"),
        }
    }
}

#[test]
fn emms_empties_the_registers() {
    let mut cpu = x87(64, &[0x0f, 0x77]);
    cpu.state.fpu.status = 0x7f00;
    assert_eq!(finish(&mut cpu), Exit::Halted);
    // TOP is cleared, too (an Intel Xeon).
    assert_eq!((cpu.state.fpu.tag, cpu.state.fpu.status), (0, 0x4700));
}
