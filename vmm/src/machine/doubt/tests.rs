//! Doubts about made-up remains of a run, without KVM.

use super::screen::screen_text;
use super::*;
use crate::controller::hypercall::errno;
use crate::controller::{ExitController, FakeVcpu};
use crate::exit::Exit;
use crate::x86::modes::Mode;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const RAM: u64 = 0x10_0000;

/// A flat binary for real mode, loaded into its memory.
fn loaded(code: &[u8], start: u64) -> (Image, GuestMemory) {
    let image = Image::flat(code.to_vec(), Mode::Real, Gpa(start)).unwrap();
    let memory = GuestMemory::new(&[(Gpa(0), RAM)]).unwrap();
    image.load(&memory, RAM).unwrap();
    (image, memory)
}

/// Code for real mode at an address.
fn assemble(start: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut code = CodeAssembler::new(16).unwrap();
    write(&mut code).unwrap();
    code.assemble(start).unwrap()
}

/// A change to the remains of a guest that halts at once.
type Change = fn(&mut Remains<'_>);

#[test]
fn each_doubt_has_its_evidence() {
    let (image, memory) = loaded(&[0xf4], 0x1000);
    let open_bus = OpenBus::default();
    let doubts = |change: Change| {
        let mut remains = Remains {
            stop: &Stop::Halted,
            image: &image,
            memory: &memory,
            result_place: [0; 8],
            vcpus: &[],
            missing_handler: None,
            entry_returned: false,
            waits_for_interrupt: false,
            printed: 0,
            is_readable: false,
            failed_calls: None,
            stacks: &[],
            open_bus: &open_bus,
            loses_stores: false,
            profile: None,
            has_screen: false,
            used_devices: false,
        };
        change(&mut remains);
        remains.doubts()
    };
    const HERE: Location = Location::At { mode: Mode::Real, cs: 0, rip: 0x2001 };
    let outside = Doubt::EndedOutside { location: HERE, image: image.ranges() };
    assert_eq!(doubts(|_| {}), [Doubt::NothingSeen]);
    assert_eq!(
        doubts(|remains| remains.waits_for_interrupt = true),
        [Doubt::NothingSeen, Doubt::NoInterrupts]
    );
    assert_eq!(doubts(|remains| (remains.waits_for_interrupt, remains.printed) = (true, 1)), []);
    assert_eq!(doubts(|remains| remains.printed = 1), []);
    const FAILED: FailedCalls = FailedCalls { call: 1, errno: errno::EFAULT, count: 3 };
    assert_eq!(doubts(|remains| remains.failed_calls = Some(FAILED)), [Doubt::FailedHypercall(FAILED)]);
    assert_eq!(
        FAILED.to_string(),
        "its hypercall Print failed with -14 (EFAULT: the text is not in memory), and 2 more failed"
    );
    assert_eq!(doubts(|remains| remains.used_devices = true), []);
    assert_eq!(doubts(|remains| remains.stop = &Stop::Exited(0)), []);
    assert_eq!(doubts(|remains| remains.stop = &Stop::Timeout(std::time::Duration::ZERO)), []);
    assert_eq!(doubts(|remains| remains.missing_handler = Some(0x10)), [Doubt::MissingHandler(0x10)]);
    let vcpus: Change = |remains| {
        remains.vcpus =
            &[Ended { location: HERE, gpa: Some(0x1001) }, Ended { location: HERE, gpa: Some(0x2001) }];
        remains.printed = 1;
    };
    assert_eq!(doubts(vcpus), [outside]);
    assert_eq!(doubts(|remains| remains.vcpus = &[Ended { location: HERE, gpa: Some(0x1001) }]).len(), 1);
}

#[test]
fn a_result_a_screen_and_a_lost_store_are_seen() {
    let doubts = |at: u64, bytes: &[u8], bus: &OpenBus, loses_stores| {
        let (image, memory) = loaded(&[0xf4], 0x1000);
        memory.write(Gpa(at), bytes).unwrap();
        let remains = Remains {
            stop: &Stop::Halted,
            image: &image,
            memory: &memory,
            result_place: [0; 8],
            vcpus: &[],
            missing_handler: None,
            entry_returned: false,
            waits_for_interrupt: false,
            printed: 0,
            is_readable: false,
            failed_calls: None,
            stacks: &[],
            open_bus: bus,
            loses_stores,
            profile: None,
            has_screen: false,
            used_devices: false,
        };
        remains.doubts()
    };
    let none = OpenBus::default();
    assert_eq!(doubts(0x400, &[42], &none, false), []);
    assert_eq!(doubts(0x407, &[1], &none, false), []);
    assert_eq!(doubts(0x408, &[1], &none, false), [Doubt::NothingSeen]);
    assert_eq!(doubts(0xb8000, b"H\x07i\x07", &none, false), [Doubt::TextScreen("Hi".into())]);
    let mut bus = OpenBus::default();
    bus.handle(&Exit::MmioWrite { address: 0xd000_0000, size: 4, data: 0 }, &mut FakeVcpu::default());
    let site = Site { reason: Reason::MmioWrite, place: Some((0xd000_0000, 4)) };
    assert_eq!(doubts(0x2000, &[0], &bus, false), [Doubt::LostStores(site, 1)]);
    assert_eq!(doubts(0x2000, &[0], &bus, true), []);
}

#[test]
fn lost_stores_and_interrupts_are_worded_after_their_number() {
    let site = Site { reason: Reason::MmioWrite, place: Some((0xdead_beef, 4)) };
    for (count, text) in [
        (1, "it stored to 0xdeadbeef, where there is no memory or device"),
        (2, "it stored to 0xdeadbeef, where there is no memory or device (and 1 more such store)"),
        (3, "it stored to 0xdeadbeef, where there is no memory or device (and 2 more such stores)"),
    ] {
        assert_eq!(Doubt::LostStores(site, count).to_string(), text);
    }
    assert!(Doubt::MissingHandler(0x21).to_string().contains("this machine has no BIOS and no DOS:"));
    assert!(Doubt::MissingHandler(0x10).to_string().contains("this machine has no BIOS (--machine bios"));
}

#[test]
fn the_last_instruction_is_in_the_image() {
    let image = [0x1000..0x1010, 0x3000..0x3001];
    for (gpa, inside) in [
        (Some(0xfff), false),
        (Some(0x1000), true),
        (Some(0x1010), true),
        (Some(0x1011), false),
        (Some(0x3001), true),
        (Some(0), false),
        (None, false),
    ] {
        assert_eq!(ends_inside(&image, gpa), inside, "{gpa:x?}");
    }
    assert!(!ends_inside(&[], Some(0)));
}

#[test]
fn only_text_on_the_screen_is_text() {
    for (cells, text) in [
        (&b"H\x07e\x07y\x07\0\0\0\0"[..], Some("Hey")),
        (b"A\0", Some("A")),
        // A cleared screen.
        (b" \x07 \x07 \x07", Some("")),
        (b"\0\0\0\0", None),
        (b"A\x07\x01\x02", None),
        (b"\0\x07", None),
        // Attributes that are colours, one of them also a character.
        (b"O\x4fK\x4f", Some("OK")),
        // A string, a pattern, and a buffer of any bytes.
        (b"Hello, world", None),
        (b"UUUUUUUU", None),
        (b"a\x01b\x02c\x03d\x04e\x05", None),
    ] {
        assert_eq!(screen_text(cells).as_deref(), text, "{cells:x?}");
    }
    assert_eq!(screen_text(&b"x\x07".repeat(100)).unwrap().len(), EXCERPT);
}

/// The stack of a guest after `int vector`, and `deeper` bytes that were pushed before.
fn after_int(start: u64, vector: u8, table: &[u8]) -> Option<u8> {
    let (image, memory) = loaded(&[0x90, 0xcd, vector, 0xf4], start);
    memory.write(Gpa(u64::from(vector) * 4), table).unwrap();
    let next = start as u16 + 3;
    let frame = [next, 0, 0x0202].map(u16::to_le_bytes);
    memory.write(Gpa(0x8000), frame.as_flattened()).unwrap();
    missing_handler(&image, &memory, 0, 0x7ff0)
}

#[test]
fn an_interrupt_without_a_handler_leaves_its_frame() {
    assert_eq!(after_int(0x1000, 0x10, &[0; 4]), Some(0x10));
    assert_eq!(after_int(0, 0x21, &[0; 4]), Some(0x21));
    // The guest has set a handler.
    assert_eq!(after_int(0x1000, 0x10, &[0, 0x20, 0, 0]), None);
    let (image, memory) = loaded(&[0x90, 0xcd, 0x10, 0xf4], 0x1000);
    // The stack has overwritten the table and the code.
    memory.write(Gpa(0x40), &[0, 0x20, 0, 0]).unwrap();
    memory.write(Gpa(0x8000), [0x1003u16, 0, 0x0202].map(u16::to_le_bytes).as_flattened()).unwrap();
    assert_eq!(missing_handler(&image, &memory, 0, 0x8000), None);
    memory.write(Gpa(0x1000), &[0x03]).unwrap();
    assert_eq!(missing_handler(&image, &memory, 0, 0x8000), Some(0x10));
    // Three words that are not a frame: the flags are impossible, or no `int` is before the address.
    for words in [[0x1003u16, 0, 0x0200], [0x1003, 0, 0xffff], [0x1002, 0, 0x0202], [0x5003, 0, 0x0202]] {
        memory.write(Gpa(0x8000), words.map(u16::to_le_bytes).as_flattened()).unwrap();
        assert_eq!(missing_handler(&image, &memory, 0, 0x8000), None, "{words:x?}");
    }
    // Hostile registers: no panic.
    for (stack, pointer) in [(u64::MAX, u64::MAX), (RAM, 0), (0xf_ffff, 0xffff)] {
        assert_eq!(missing_handler(&image, &memory, stack, pointer), None);
    }
}

#[test]
fn memory_around_the_screen_shows_that_it_is_no_screen() {
    let (image, memory) = loaded(&[0xf4], 0x1000);
    memory.write(Gpa(0xb8000), b"H\x07i\x07").unwrap();
    let text = |stacks: &[u64]| screen::text(&image, &memory, stacks);
    assert_eq!(text(&[0xf_fff0, 0xb_8000 - 8]).as_deref(), Some("Hi"));
    assert_eq!(text(&[0xf_fff0, 0xb_bff0]), None, "the stack of a vCPU");
    // A guest may clear more than the screen.
    memory.write(Gpa(0xb8fa0), b" \x07 \x07").unwrap();
    assert_eq!(text(&[]).as_deref(), Some("Hi"));
    memory.write(Gpa(0xb8fa0), b"x\x07").unwrap();
    assert_eq!(text(&[]), None);
    memory.write(Gpa(0xb8fa0), b"\0\0").unwrap();
    memory.write(Gpa(0xb7fff), b"x").unwrap();
    assert_eq!(text(&[]), None);
}

#[test]
fn a_handler_that_the_guest_installed_counts_wherever_it_and_its_stack_are() {
    // The call is at the beginning of the image and the handler at its end. The guest has changed its entry point.
    let found = |start: u64, pointer: u64, vector: u8, handler: &[u8]| {
        let (image, memory) = loaded(&[0x90, 0xcd, vector, 0xf4, 0x90, 0xf4], start);
        memory.write(Gpa(start), &[0xfc]).unwrap();
        let frame = [start as u16 + 3, 0, 0x0202].map(u16::to_le_bytes);
        memory.write(Gpa(pointer), frame.as_flattened()).unwrap();
        memory.write(Gpa(u64::from(vector) * 4), handler).unwrap();
        missing_handler(&image, &memory, 0, pointer)
    };
    assert_eq!(found(0x1000, 0x8000, 0x21, &[0x04, 0x10, 0, 0]), None);
    // The stack is just above the table.
    assert_eq!(found(0x600, 0x4fa, 0x21, &[0x04, 0x06, 0, 0]), None);
    // The handler follows the call.
    assert_eq!(found(0x600, 0x4fa, 0x21, &[0x03, 0x06, 0, 0]), None);
    // Frames of earlier calls have overwritten the entry.
    for frame in
        [[0x03, 0x10, 0, 0, 0x02, 0x02], [0, 0, 0x02, 0x02, 0x03, 0x10], [0x02, 0x02, 0x03, 0x10, 0, 0]]
    {
        assert_eq!(found(0x1000, 0x8000, 0x21, &frame), Some(0x21), "{frame:x?}");
    }
    assert_eq!(found(0x1000, 0x8000, 0x21, &[0, 0, 0, 0]), Some(0x21));
}

/// Code that prints a letter of the text after it, whose address it loads.
fn text_at(address: u32) -> Vec<u8> {
    assemble(0, |code| {
        code.mov(si, address as i32)?;
        code.lodsb()?;
        code.out(0xe9, al)?;
        code.hlt()?;
        code.db(b"Hello, world!\0")
    })
}

#[test]
fn a_text_at_another_address_shows_where_the_image_belongs() {
    // The text is at offset 7.
    for (address, start, load_at) in [
        (0x1007, 0, Some(0x1000)),
        (0x7c07, 0x1000, Some(0x7c00)),
        (0x0007, 0x1000, Some(0)),
        (0x0107, 0, Some(0x100)),
        (0x1007, 0x1000, None),
        (0x1008, 0, None),
        (0x2345, 0, None),
    ] {
        let image = Image::flat(text_at(address), Mode::Real, Gpa(start)).unwrap();
        let found = silence(&image, 0).map(|doubt| match doubt {
            Doubt::MisplacedText { load_at, .. } => load_at,
            other => panic!("{other}"),
        });
        assert_eq!(found, load_at, "{address:#x} {start:#x}");
    }
    // Zeroes were printed, and it is not clear why.
    let image = Image::flat(text_at(0x2345), Mode::Real, Gpa(0)).unwrap();
    assert_eq!(silence(&image, 5), Some(Doubt::BlankOutput(5)));
}

#[test]
fn a_number_that_is_no_pointer_is_no_evidence() {
    // A text at offset 2, at which no instruction points. The number 2 is only computed with.
    let computes = |also_prints: bool| {
        assemble(0, |code| {
            let mut main = code.create_label();
            code.jmp(main)?;
            code.db(b"guest16 by Ana\0")?;
            code.set_label(&mut main)?;
            code.mov(cx, 2)?;
            code.mul(cx)?;
            if also_prints {
                code.mov(dx, 0x0402)?;
                code.out(0xe9, al)?;
            }
            code.hlt()
        })
    };
    for code in [computes(false), computes(true)] {
        assert_eq!(silence(&Image::flat(code, Mode::Real, Gpa(0x1000)).unwrap(), 0), None);
    }
    // A pointer to a text, but the code never prints.
    let reads = assemble(0, |code| {
        code.mov(si, 0x2005)?;
        code.lodsb()?;
        code.hlt()?;
        code.db(b"Hello, world!\0")
    });
    assert_eq!(silence(&Image::flat(reads, Mode::Real, Gpa(0x1000)).unwrap(), 0), None);
}

/// Code for protected mode that prints the text after it. In real mode it reads another address.
fn prints_in_protected_mode(address: u32) -> Vec<u8> {
    let mut code = CodeAssembler::new(32).unwrap();
    let mut next = code.create_label();
    code.mov(edx, 0xe9).unwrap();
    code.mov(esi, address).unwrap();
    code.mov(ecx, 5).unwrap();
    code.set_label(&mut next).unwrap();
    code.mov(al, byte_ptr(esi)).unwrap();
    code.out(dx, al).unwrap();
    code.inc(esi).unwrap();
    code.dec(ecx).unwrap();
    code.jne(next).unwrap();
    code.hlt().unwrap();
    code.db(b"Hello\0").unwrap();
    code.assemble(0x1000).unwrap()
}

#[test]
fn a_text_that_is_printed_only_in_another_mode_shows_the_mode() {
    let text = prints_in_protected_mode(0).len() as u32 - 6;
    let silence = |mode, start| {
        silence(&Image::flat(prints_in_protected_mode(0x1000 + text), mode, Gpa(start)).unwrap(), 0)
    };
    let found = |start| match silence(Mode::Real, start) {
        Some(Doubt::OtherMode { text, modes, load_at }) => {
            assert_eq!((text.as_str(), modes.first(), load_at), ("Hello", Some(&":32"), 0x1000));
        }
        other => panic!("{other:?}"),
    };
    found(0x1000);
    // The address is also missing.
    found(0);
    assert_eq!(silence(Mode::Protected, 0x1000), None);
}

#[test]
fn code_whose_addresses_are_not_clear_is_not_blamed() {
    let misplaced = |code: Vec<u8>| silence(&Image::flat(code, Mode::Real, Gpa(0x1000)).unwrap(), 0);
    // A data segment that does not begin at 0.
    let segment = |value: i32| {
        assemble(0, |code| {
            code.mov(ax, value)?;
            code.mov(ds, ax)?;
            code.mov(si, 0xc)?;
            code.lodsb()?;
            code.out(0xe9, al)?;
            code.hlt()?;
            code.db(b"Hello, world!\0")
        })
    };
    assert_eq!(misplaced(segment(0x100)), None);
    assert!(misplaced(segment(0)).is_some());
    // The guests of the catalogue are in the program, and at their addresses.
    for guest in guest::GUESTS.iter().filter(|guest| guest.mode != Mode::User) {
        let image = Image::flat(guest.image.to_vec(), guest.mode, Gpa(guest.load_at)).unwrap();
        assert_eq!(silence(&image, 0), None, "{}", guest.name);
    }
    // Any bytes, also code that jumps to itself, before itself and past its end.
    for code in [&[0xeb, 0xfe][..], &[0xe9, 0, 0x80], &[0x75, 0x7f], &[0xff; 64], &[0; 4096]] {
        assert_eq!(misplaced(code.to_vec()), None);
    }
}
