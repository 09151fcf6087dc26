//! Runs a guest a thousand times in one virtual machine, reads its memory, and counts its exits.

use std::time::Instant;
use vmm::boot::Image;
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Error, Machine};

/// mov bx, [0x500]; lea ax, [bx+2]; out 0x42, al; mov [0x502], ax; hlt
const CODE: &[u8] = &[0x8b, 0x1e, 0, 5, 0x8d, 0x47, 2, 0xe6, 0x42, 0xa3, 2, 5, 0xf4];

fn main() -> Result<(), Error> {
    let mut machine = Machine::builder(Image::flat(CODE, Mode::Real, Gpa(0x1000))?).build()?;
    let (started, mut exits, mut sum) = (Instant::now(), 0, 0);
    for input in 0..1000u16 {
        machine.memory().write(Gpa(0x500), &input.to_le_bytes())?;
        let report = machine.run()?;
        exits += report.profile.map_or(0, |profile| profile.total().exits);
        let mut output = [0; 2];
        machine.memory().read(Gpa(0x502), &mut output);
        sum += u64::from(u16::from_le_bytes(output));
        machine.reset()?;
    }
    assert_eq!(sum, 501_500, "0 + 2, 1 + 2, ... 999 + 2");
    println!("1000 runs: {exits} exits, all results right");
    eprintln!("{:.1} us for each run and reset", started.elapsed().as_secs_f64() * 1e3);
    Ok(())
}
