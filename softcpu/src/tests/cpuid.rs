use super::supported_cpuid;
use crate::testing::real_mode;

/// The vendor and the brand, and the rules for leaves that are not there (SDM volume 2, "CPUID").
#[test]
fn leaves_read_as_on_a_processor_of_intel() {
    let mut cpu = real_mode(&[]);
    assert_eq!(cpu.cpuid_registers(0, 0), [0; 4]);
    cpu.set_cpuid(supported_cpuid());
    let text =
        |registers: &[u32]| -> Vec<u8> { registers.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let [last, b, c, d] = cpu.cpuid_registers(0, 0);
    assert_eq!((last, text(&[b, d, c])), (7, b"GenuineIntel".to_vec()));
    let brand: Vec<u8> = (2..5).flat_map(|leaf| text(&cpu.cpuid_registers(0x8000_0000 + leaf, 0))).collect();
    assert!(brand.starts_with(b"softcpu: a processor in software\0"));
    // A leaf in range that does not exist.
    assert_eq!(cpu.cpuid_registers(5, 0), [0; 4]);
    assert_eq!(cpu.cpuid_registers(7, 1), [0; 4]);
    // A leaf out of range reads as the last basic one, with the same subleaf.
    let last = cpu.cpuid_registers(7, 0);
    assert_ne!(last, [0; 4]);
    for leaf in [8, 0x7fff_ffff, 0x8000_0009, 0xffff_ffff, 0x4000_0001, 0x2000_0000] {
        assert_eq!(cpu.cpuid_registers(leaf, 0), last, "{leaf:#x}");
        assert_eq!(cpu.cpuid_registers(leaf, 1), [0; 4], "{leaf:#x}");
    }
}

#[test]
fn a_feature_is_a_bit() {
    let mut cpu = real_mode(&[]);
    assert!(!cpu.has_feature(super::feature::LM));
    cpu.set_cpuid(supported_cpuid());
    assert!(cpu.has_feature(super::feature::LM));
    assert!(cpu.has_feature(super::feature::RDPID));
    assert!(!cpu.has_feature((1, super::EDX, 0)), "an FPU");
}

/// The CPUID instruction takes EAX and ECX, and clears the upper halves of four registers.
#[test]
fn the_instruction_writes_four_registers() {
    let mut cpu = crate::testing::long_mode(&[0x0f, 0xa2, 0xf4], 0);
    cpu.set_cpuid(supported_cpuid());
    cpu.state.gpr = [u64::MAX; 16];
    (cpu.state.gpr[0], cpu.state.gpr[1]) = (0xffff_ffff_0000_0007, 0xffff_ffff_0000_0000);
    cpu.run(10);
    let want = cpu.cpuid_registers(7, 0).map(u64::from);
    assert_eq!([cpu.state.gpr[0], cpu.state.gpr[3], cpu.state.gpr[1], cpu.state.gpr[2]], want);
}
