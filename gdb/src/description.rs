//! The description of the registers (gdb manual, appendix G), which gdb reads as `target.xml`.

use crate::registers::{Width, groups};

/// A register that shows its bits by name.
struct Flags {
    /// The name of the type, which `registers.rs` uses.
    name: &'static str,
    bytes: u8,
    /// The bits, in ascending order.
    bits: &'static [(u8, &'static str)],
}

/// SDM volume 1, sections 3.4.3 and 10.2.3, and volume 3, sections 2.2.1 and 2.5.
static TYPES: [Flags; 5] = [
    Flags { name: "flags", bytes: 4, bits: &vmm::x86::FLAGS },
    Flags {
        name: "cr0",
        bytes: 8,
        bits: &[
            (0, "PE"),
            (1, "MP"),
            (2, "EM"),
            (3, "TS"),
            (4, "ET"),
            (5, "NE"),
            (16, "WP"),
            (18, "AM"),
            (29, "NW"),
            (30, "CD"),
            (31, "PG"),
        ],
    },
    Flags {
        name: "cr4",
        bytes: 8,
        bits: &[
            (0, "VME"),
            (1, "PVI"),
            (2, "TSD"),
            (3, "DE"),
            (4, "PSE"),
            (5, "PAE"),
            (6, "MCE"),
            (7, "PGE"),
            (8, "PCE"),
            (9, "OSFXSR"),
            (10, "OSXMMEXCPT"),
            (11, "UMIP"),
            (12, "LA57"),
            (16, "FSGSBASE"),
            (17, "PCIDE"),
            (18, "OSXSAVE"),
            (20, "SMEP"),
            (21, "SMAP"),
            (22, "PKE"),
        ],
    },
    Flags { name: "efer", bytes: 8, bits: &[(0, "SCE"), (8, "LME"), (10, "LMA"), (11, "NXE")] },
    Flags {
        name: "i386_mxcsr",
        bytes: 4,
        bits: &[
            (0, "IE"),
            (1, "DE"),
            (2, "ZE"),
            (3, "OE"),
            (4, "UE"),
            (5, "PE"),
            (6, "DAZ"),
            (7, "IM"),
            (8, "DM"),
            (9, "ZM"),
            (10, "OM"),
            (11, "UM"),
            (12, "PM"),
            (15, "FZ"),
        ],
    },
];

/// The parts of an XMM register, as gdb knows them: name of the field, type of an element, and number of elements.
static VECTORS: [(&str, &str, u8); 6] = [
    ("v4_float", "ieee_single", 4),
    ("v2_double", "ieee_double", 2),
    ("v16_int8", "int8", 16),
    ("v8_int16", "int16", 8),
    ("v4_int32", "int32", 4),
    ("v2_int64", "int64", 2),
];

/// The description of a processor.
pub(crate) fn xml(width: Width) -> String {
    let mut xml = String::with_capacity(8 << 10);
    xml += "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target>\n<architecture>";
    xml += width.architecture();
    xml += "</architecture>\n";
    for group in groups(width) {
        xml += "<feature name=\"";
        xml += group.feature;
        xml += "\">\n";
        let registers = || group.tables.into_iter().flatten();
        for flags in TYPES.iter().filter(|flags| registers().any(|register| register.kind == flags.name)) {
            add_flags(&mut xml, flags);
        }
        if registers().any(|register| register.kind == "vec128") {
            add_vector(&mut xml);
        }
        for register in registers() {
            xml += &format!(
                "<reg name=\"{}\" bitsize=\"{}\" type=\"{}\"/>\n",
                register.name, register.bits, register.kind
            );
        }
        xml += "</feature>\n";
    }
    xml + "</target>\n"
}

fn add_flags(xml: &mut String, flags: &Flags) {
    *xml += &format!("<flags id=\"{}\" size=\"{}\">\n", flags.name, flags.bytes);
    for (bit, name) in flags.bits {
        *xml += &format!("<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>\n");
    }
    *xml += "</flags>\n";
}

/// The type of an XMM register.
fn add_vector(xml: &mut String) {
    for (name, kind, count) in VECTORS {
        *xml += &format!("<vector id=\"{name}\" type=\"{kind}\" count=\"{count}\"/>\n");
    }
    *xml += "<union id=\"vec128\">\n";
    for (name, ..) in VECTORS {
        *xml += &format!("<field name=\"{name}\" type=\"{name}\"/>\n");
    }
    *xml += "<field name=\"uint128\" type=\"uint128\"/>\n</union>\n";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registers::all;

    #[test]
    fn the_description_has_all_registers_in_order() {
        for width in [Width::Bits16, Width::Bits32, Width::Bits64] {
            let xml = xml(width);
            let names = xml.lines().filter_map(|line| line.strip_prefix("<reg name=\"")?.split('"').next());
            assert!(names.eq(all(width).map(|register| register.name)));
            assert!(xml.contains(width.architecture()) && xml.ends_with("</target>\n"));
        }
    }
}
