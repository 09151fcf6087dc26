use super::*;
use clap::ValueEnum;
use vmm::x86::Mode;

#[test]
fn numbers_and_sizes_are_parsed() {
    assert_eq!(parse_number("0x10_0000"), Ok(1 << 20));
    assert_eq!(parse_number("4096"), Ok(4096));
    for bad in ["", "0x", "-1", "+1", "0x-1", "4k", "18446744073709551616", "1.5"] {
        assert!(parse_number(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_size("250M"), Ok(250 << 20));
    assert_eq!(parse_size("4k"), Ok(4096));
    assert_eq!(parse_size("0x1000"), Ok(4096));
    assert_eq!(parse_size("9223372036854775808"), Ok(1 << 63));
    for bad in ["", "M", "17179869184G", "-1M", "0x1M", "1T", "é"] {
        assert!(parse_size(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_cpus("4"), Ok(4));
    for bad in ["", "-1", "four", "4294967296"] {
        assert!(parse_cpus(bad).is_err(), "{bad}");
    }
}

/// `FILE:MODE` and `--mode` accept the same names.
#[test]
fn the_names_of_modes_are_those_of_the_library() {
    for mode in ModeArg::value_variants() {
        let value = mode.to_possible_value().unwrap();
        for name in value.get_name_and_aliases() {
            assert_eq!(name.parse(), Ok(Mode::from(*mode)), "{name}");
            assert_eq!(name.to_uppercase().parse(), Ok(Mode::from(*mode)), "{name}");
        }
    }
}

#[test]
fn a_value_out_of_range_is_named_with_its_option_and_range() {
    assert_eq!(check_queue_len(4096).unwrap(), 4096);
    let message = |bytes| check_queue_len(bytes).unwrap_err().to_string();
    assert_eq!(message(1), "--queue-len must be 2 to 4096, not 1");
    assert_eq!(message(1 << 40), "--queue-len must be 2 to 4096, not 1099511627776");
}

#[test]
fn msr_rules_and_cpuid_changes_are_parsed() {
    assert_eq!(parse_msr_rule("0x1a0=deny"), Ok((0x1a0, MsrRule::Deny)));
    for bad in ["", "1", "1=", "=deny", "1=allow", "0x100000000=deny", "x=log"] {
        assert!(parse_msr_rule(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_cpuid("none"), Ok(CpuidArg::None));
    assert!(matches!(parse_cpuid("1.ecx.24=1"), Ok(CpuidArg::Change(_))));
    assert!(parse_cpuid("some").is_err());
}

#[test]
fn timeouts_are_parsed() {
    assert_eq!(parse_timeout("0.5").unwrap().0, Some(Duration::from_millis(500)));
    assert_eq!(parse_timeout("0").unwrap().0, None);
    assert_eq!(parse_timeout("0.0e9").unwrap().0, None);
    for bad in ["", "1e-400", "-1", "nan", "inf", "1e10", "ten"] {
        assert!(parse_timeout(bad).is_err(), "{bad}");
    }
}
