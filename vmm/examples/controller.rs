#![allow(missing_docs)]

use vmm::boot::Image;
use vmm::controller::{ExitController, VcpuState};
use vmm::exit::{Exit, Outcome};
use vmm::memory::Gpa;
use vmm::x86::Mode;
use vmm::{Error, Machine, Output};

/// A port that returns twice the value that was last written.
struct Doubler(u32);

impl ExitController for Doubler {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        match *exit {
            Exit::PioOut { port: 0x42, data, .. } => {
                self.0 = data;
                Outcome::Resume
            }
            Exit::PioIn { port: 0x42, .. } => {
                println!("vCPU {} reads twice {}", vcpu.id(), self.0);
                Outcome::Value(u64::from(self.0) * 2)
            }
            _ => Outcome::Unclaimed,
        }
    }
}

fn main() -> Result<(), Error> {
    // mov al, 21; out 0x42, al; in al, 0x42; out 0xf4, al. The last write makes the doubled number the exit code.
    let guest: &[u8] = &[0xb0, 21, 0xe6, 0x42, 0xe4, 0x42, 0xe6, 0xf4];
    let machine = Machine::builder(Image::flat(guest, Mode::Real, Gpa(0x1000))?);
    let machine = machine.controller(|_| Doubler(0)).output(Output::captured().0);
    println!("{}", machine.build()?.run()?.stop);
    Ok(())
}
