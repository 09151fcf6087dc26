use super::*;

/// A writer that takes three bytes at a time, after one interruption each.
#[derive(Clone, Default)]
struct Slow {
    taken: Arc<Mutex<Vec<u8>>>,
    interrupt: bool,
}

impl Write for Slow {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let some = &data[..data.len().min(3)];
        self.taken.lock().unwrap().extend(some);
        Ok(some.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn whole_lines_are_written_and_the_rest_at_the_end() {
    let slow = Slow::default();
    let mut output = Output::new(slow.clone(), true);
    assert!(output.print(b"one").is_continue());
    assert_eq!(*slow.taken.lock().unwrap(), b"");
    assert!(output.print(b" line\nand").is_continue());
    assert_eq!(*slow.taken.lock().unwrap(), b"one line\nand");
    assert!(output.print(b" more").is_continue());
    assert!(output.finish().is_continue());
    assert_eq!(*slow.taken.lock().unwrap(), b"one line\nand more");
}

#[test]
fn a_write_that_would_block_is_repeated() {
    struct Busy(Captured, u32);
    impl Write for Busy {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(2) { self.0.write(data) } else { Err(io::ErrorKind::WouldBlock.into()) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let captured = Captured::default();
    let mut output = Output::new(Busy(captured.clone(), 0), false);
    assert!(output.print(b"one").is_continue() && output.print(b"two").is_continue());
    assert_eq!(captured.bytes(), b"onetwo");
}

#[test]
fn a_very_long_line_is_written_in_chunks() {
    let slow = Slow::default();
    let mut output = Output::new(slow.clone(), true);
    for _ in 0..CHUNK {
        assert!(output.print(b"x").is_continue());
    }
    assert_eq!(slow.taken.lock().unwrap().len(), CHUNK);
}

#[test]
fn an_interruption_after_the_deadline_ends_the_run() {
    let mut output = Output::new(Slow::default(), false);
    output.set_deadline(Deadline::after(Some(Duration::ZERO)));
    assert!(matches!(output.print(b"x"), ControlFlow::Break(Stop::Timeout(_))));
}

/// A kick interrupts a long write after a part of it, and the next write blocks again.
#[test]
fn a_reader_that_takes_little_at_a_time_does_not_hold_a_run_beyond_its_deadline() {
    struct Trickle(Captured);
    impl Write for Trickle {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.write(&data[..1])
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let captured = Captured::default();
    let mut output = Output::new(Trickle(captured.clone()), false);
    assert!(output.print(b"all").is_continue());
    output.set_deadline(Deadline::after(Some(Duration::ZERO)));
    assert!(matches!(output.print(b"text"), ControlFlow::Break(Stop::Timeout(_))));
    assert_eq!(captured.bytes(), b"allt");
    assert!(output.print(b"x").is_continue(), "nothing is left to wait for");
}

#[test]
fn a_captured_output_is_bounded() {
    let (mut output, captured) = Output::captured();
    for _ in 0..3 {
        assert!(output.print(&vec![b'x'; MAX_CAPTURED / 2]).is_continue());
    }
    assert_eq!(captured.bytes().len(), MAX_CAPTURED);
}

#[test]
fn a_copy_has_the_text_as_the_guest_printed_it() {
    let (output, captured) = Output::captured();
    let mut output = output.with_visible_controls();
    let copy = output.copied(5);
    assert!(output.print(b"a\x1bb").is_continue() && output.print(b"cdef").is_continue());
    assert_eq!((copy.bytes(), copy.total()), (b"a\x1bbcd".to_vec(), 7));
    assert_eq!((captured.bytes(), captured.total()), (b"a\\x1bbcdef".to_vec(), 10));
}

#[test]
fn a_character_that_never_ends_becomes_visible_at_the_end_of_the_run() {
    let (output, captured) = Output::captured();
    let mut output = output.with_visible_controls();
    assert!(output.print(b"\x1b\xe2\x9c").is_continue() && output.finish().is_continue());
    assert_eq!(captured.bytes(), b"\\x1b", "the character may still be completed");
    assert!(output.print(b"\x93\xe2").is_continue() && output.end_run().is_continue());
    assert_eq!(String::from_utf8(captured.bytes()).unwrap(), "\\x1b\u{2713}\\xe2");
}
