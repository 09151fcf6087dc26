use crate::Cpu;
use crate::exit::{Exit, Missing};
use crate::memory::VecMemory;
use crate::state::{cr0, cr4, flag};
use crate::testing::{CODE, MEMORY, finish, in_mode, long_mode, protected_mode, real_mode, vector};

/// Switches SSE on.
fn with_sse(mut cpu: Cpu<VecMemory>) -> Cpu<VecMemory> {
    cpu.state.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
    cpu.state_changed();
    cpu
}

/// A processor in 64-bit mode with SSE, where RSI and RDI are 0x5000. It halts after the code.
fn sse(code: &[u8]) -> Cpu<VecMemory> {
    let mut cpu = with_sse(long_mode(&[code, &[0xf4]].concat(), 0));
    (cpu.state.gpr[6], cpu.state.gpr[7]) = (0x5000, 0x5000);
    cpu
}

fn number(text: &str) -> u128 {
    u128::from_str_radix(text, 16).unwrap()
}

/// The vector of the exception, MXCSR, XMM0, and RAX or RFLAGS.
fn outcome(cpu: &mut Cpu<VecMemory>, with_flags: bool) -> [String; 4] {
    let vector = match finish(cpu) {
        Exit::Halted => "-".to_owned(),
        Exit::Shutdown => cpu.death().unwrap().faults[0].vector.to_string(),
        exit => format!("{exit:?}"),
    };
    let register = if with_flags { cpu.state.rflags & flag::STATUS } else { cpu.state.gpr[0] };
    let state = &cpu.state;
    [vector, format!("{:x}", state.mxcsr), format!("{:x}", state.xmm[0]), format!("{register:x}")]
}

/// Results, exceptions and flags that the processor named in the table gave.
#[test]
fn the_results_are_those_of_a_processor() {
    let mut rows = 0;
    for line in include_str!("sse.txt").lines().filter(|line| !line.starts_with('#')) {
        let (name, values) = line.split_once("; ").unwrap();
        let (before, after) = values.split_once(" = ").unwrap();
        let (before, after): (Vec<_>, Vec<_>) = (before.split(' ').collect(), after.split(' ').collect());
        let digits = before[0].as_bytes().chunks(2);
        let code: Vec<u8> = digits.map(|byte| number(str::from_utf8(byte).unwrap()) as u8).collect();
        let mut cpu = sse(&code);
        cpu.state.mxcsr = number(before[1]) as u32;
        (cpu.state.xmm[0], cpu.state.xmm[1]) = (number(before[2]), number(before[3]));
        cpu.state.gpr[1] =
            number(before[4].trim_start_matches('-').get(..).filter(|t| !t.is_empty()).unwrap_or("0")) as u64;
        let mut found = outcome(&mut cpu, name.contains("comi"));
        if after[3] == "-" {
            "-".clone_into(&mut found[3]);
        }
        assert_eq!(found.as_slice(), after, "{line}");
        rows += 1;
    }
    assert!(rows > 600, "{rows}");
}

/// All rows of the table with a second register also hold with the value in memory: here for an instruction of each kind.
#[test]
fn the_second_operand_can_be_in_memory() {
    // addps, addss, cvtss2sd, cvtdq2pd, cvttsd2si rax, ucomisd, pmaddwd, punpcklbw, pshufd 0x1b, movhps, movss
    let codes: [&[u8]; 11] = [
        &[0x0f, 0x58],
        &[0xf3, 0x0f, 0x58],
        &[0xf3, 0x0f, 0x5a],
        &[0xf3, 0x0f, 0xe6],
        &[0xf2, 0x48, 0x0f, 0x2c],
        &[0x66, 0x0f, 0x2e],
        &[0x66, 0x0f, 0xf5],
        &[0x66, 0x0f, 0x60],
        &[0x66, 0x0f, 0x70],
        &[0x0f, 0x16],
        &[0xf3, 0x0f, 0x10],
    ];
    let (a, b) = (0x4004_0000_3f80_0000_4048_f5c3_c120_0000, 0x4029_1eb8_51eb_851f_4010_0000_4000_0000u128);
    for code in codes {
        let immediate: &[u8] = if code[2..] == [0x70] { &[0x1b] } else { &[] };
        let with = |modrm: u8| {
            let mut cpu = sse(&[code, &[modrm], immediate].concat());
            (cpu.state.xmm[0], cpu.state.xmm[1]) = (a, b);
            cpu.memory().write(0x5000, &b.to_le_bytes());
            outcome(&mut cpu, false)
        };
        let (register, memory) = (with(0xc1), with(0x06));
        // A load of a scalar clears the rest, which a move between registers keeps.
        match code {
            [0xf3, 0x0f, 0x10] => assert_eq!(memory[2], "40000000"),
            _ => assert_eq!(register, memory, "{code:x?}"),
        }
    }
}

/// SDM volume 3, table 2-2.
#[test]
fn cr0_and_cr4_switch_sse_off() {
    // addps xmm0, xmm1; movd eax, xmm0; pand; cvtsi2ss xmm0, eax; movaps xmm0, [rsi]; ldmxcsr [rsi]
    let codes: [&[u8]; 6] = [
        &[0x0f, 0x58, 0xc1],
        &[0x66, 0x0f, 0x7e, 0xc0],
        &[0x66, 0x0f, 0xdb, 0xc1],
        &[0xf3, 0x0f, 0x2a, 0xc0],
        &[0x0f, 0x28, 0x06],
        &[0x0f, 0xae, 0x16],
    ];
    for code in codes {
        for (set, clear, wanted) in [
            (cr0::EM, 0, 6),
            (cr0::TS, 0, 7),
            (0, cr4::OSFXSR, 6),
            (cr0::EM | cr0::TS, 0, 6),
            (cr0::TS, cr4::OSFXSR, 6),
        ] {
            let mut cpu = sse(code);
            // The memory operand is not aligned, not canonical, and is not looked at.
            cpu.state.gpr[6] = 1 << 63 | 1;
            cpu.state.cr0 |= set;
            cpu.state.cr4 &= !clear;
            assert_eq!(vector(&mut cpu), (wanted, None), "{code:x?}");
        }
    }
}

#[test]
fn an_unmasked_exception_is_ud_without_osxmmexcpt() {
    let mut cpu = sse(&[0x0f, 0x5e, 0xc1]);
    (cpu.state.mxcsr, cpu.state.xmm[0]) = (0x1f80 & !(4 << 7), 0x3f80_0000);
    cpu.state.cr4 &= !cr4::OSXMMEXCPT;
    assert_eq!(vector(&mut cpu), (6, None));
    // 0/0 in the other elements is masked.
    assert_eq!((cpu.state.mxcsr & 0x3f, cpu.state.xmm[0]), (5, 0x3f80_0000));
}

#[test]
fn sixteen_bytes_of_memory_must_be_aligned() {
    let aligned: [&[u8]; 6] = [
        &[0x0f, 0x28, 0x06],
        &[0x0f, 0x29, 0x06],
        &[0x66, 0x0f, 0x6f, 0x06],
        &[0x66, 0x0f, 0xe7, 0x06],
        &[0x0f, 0x58, 0x06],
        &[0x66, 0x0f, 0x60, 0x06],
    ];
    for code in aligned {
        let mut cpu = sse(code);
        assert_eq!(finish(&mut cpu), Exit::Halted);
        let mut cpu = sse(code);
        cpu.state.gpr[6] = 0x5008;
        assert_eq!(vector(&mut cpu), (13, Some(0)), "{code:x?}");
    }
    // movups, movdqu, addsd, movhpd
    let free: [&[u8]; 5] = [
        &[0x0f, 0x10, 0x06],
        &[0x0f, 0x11, 0x06],
        &[0xf3, 0x0f, 0x7f, 0x06],
        &[0xf2, 0x0f, 0x58, 0x06],
        &[0x66, 0x0f, 0x16, 0x06],
    ];
    for code in free {
        let mut cpu = sse(code);
        cpu.state.gpr[6] = 0x5ff9;
        assert_eq!(finish(&mut cpu), Exit::Halted, "{code:x?}");
    }
}

#[test]
fn a_store_across_pages_that_faults_writes_nothing() {
    // movups [rsi], xmm0; maskmovdqu xmm0, xmm1 with a mask that selects the first page only.
    for code in [&[0x0f, 0x11, 0x06][..], &[0x66, 0x0f, 0xf7, 0xc1]] {
        let mut cpu = with_sse(protected_mode(code, 0));
        cpu.state.xmm[0] = u128::MAX;
        cpu.state.xmm[1] = u64::MAX.into();
        (cpu.state.gpr[6], cpu.state.gpr[7]) = (0x5ff8, 0x5ff8);
        cpu.state.segments[3].limit = 0x5fff;
        assert_eq!(vector(&mut cpu).0, 13, "{code:x?}");
        assert_eq!(cpu.memory().read(0x5ff8, 16), [0; 16]);
    }
}

#[test]
fn maskmovdqu_stores_the_selected_bytes() {
    for (bits, prefix) in [(16, &[][..]), (32, &[]), (64, &[]), (64, &[0x67])] {
        let code = [prefix, &[0x66, 0x0f, 0xf7, 0xc1, 0xf4]].concat();
        let mut cpu = with_sse(in_mode(bits, &code));
        cpu.state.gpr[7] = if bits == 64 && prefix.is_empty() { 0x5003 } else { 0xffff_0000_0000_5003 };
        cpu.state.xmm[0] = u128::from_le_bytes(std::array::from_fn(|byte| byte as u8 + 1));
        cpu.state.xmm[1] = 0x80 | 0x7f << 8 | 0xff << 64 | 0x80 << 120;
        assert_eq!(finish(&mut cpu), Exit::Halted);
        let mut wanted = [0; 24];
        (wanted[3], wanted[11], wanted[18]) = (1, 9, 16);
        assert_eq!(cpu.memory().read(0x5000, 24), wanted);
    }
}

/// Each access to an address without memory is an exit, and the instruction is executed again.
#[test]
fn sse_reaches_devices() {
    let mut cpu = with_sse(protected_mode(&[0x0f, 0x58, 0x06, 0x0f, 0x29, 0x06, 0xf4], 0));
    cpu.state.gpr[6] = MEMORY as u64;
    let address = MEMORY as u64;
    assert_eq!(cpu.run(10), Exit::MmioRead { address, size: 8 });
    cpu.answer(0x3f80_0000_4000_0000);
    assert_eq!(cpu.run(10), Exit::MmioRead { address: address + 8, size: 8 });
    cpu.answer(0x4040_0000_4080_0000);
    assert_eq!(cpu.run(10), Exit::MmioWrite { address, size: 8, data: 0x3f80_0000_4000_0000 });
    assert_eq!(cpu.run(10), Exit::MmioWrite { address: address + 8, size: 8, data: 0x4040_0000_4080_0000 });
    assert_eq!(cpu.run(10), Exit::Halted);
}

#[test]
fn mxcsr_refuses_reserved_bits() {
    let mut cpu = sse(&[0x0f, 0xae, 0x16, 0x0f, 0xae, 0x5e, 0x04]);
    cpu.memory().write(0x5000, &0xffffu32.to_le_bytes());
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!((cpu.state.mxcsr, cpu.memory().read(0x5004, 4)), (0xffff, vec![0xff, 0xff, 0, 0]));
    for bit in 16..32 {
        let mut cpu = sse(&[0x0f, 0xae, 0x16]);
        cpu.memory().write(0x5000, &(1u32 << bit).to_le_bytes());
        assert_eq!(vector(&mut cpu), (13, Some(0)));
        assert_eq!(cpu.state.mxcsr, 0x1f80);
    }
}

/// The string instructions with the names of SSE instructions, and those of MMX.
#[test]
fn other_instructions_are_not_taken_for_sse() {
    let mut cpu = real_mode(&[0x66, 0xa5, 0xf4]);
    (cpu.state.gpr[6], cpu.state.gpr[7]) = (CODE, 0x5000);
    assert_eq!(finish(&mut cpu), Exit::Halted);
    assert_eq!(cpu.memory().read(0x5000, 3), [0x66, 0xa5, 0xf4]);
    // paddb mm0, mm1; movq2dq xmm0, mm0; cvtpi2ps xmm0, mm0; haddps xmm0, xmm1
    let codes: [&[u8]; 4] =
        [&[0x0f, 0xfc, 0xc1], &[0xf3, 0x0f, 0xd6, 0xc0], &[0x0f, 0x2a, 0xc0], &[0xf2, 0x0f, 0x7c, 0xc1]];
    for code in codes {
        assert_eq!(finish(&mut sse(code)), Exit::Unsupported(Missing::Instruction), "{code:x?}");
    }
}
