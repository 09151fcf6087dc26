//! The option `--gdb`: a debugger for the guest.

use clap::Args;
use gdb::{Address, Server, Width};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use vmm::lab::probe_debugging;
use vmm::machine::Processor;
use vmm::machine::debug::{Debugger, Facilities};
use vmm::{Error, Machine};

/// The value of `--gdb` that lets the guest run until it dies.
const ON_DEATH: &str = "on-death";

#[derive(Debug, Default, Args)]
pub struct GdbArgs {
    /// Let gdb debug the guest, which waits for it before its first instruction. WHERE is a port, ADDRESS:PORT, or the path
    /// of a socket. With on-death the guest runs, and waits only where it dies [default: 127.0.0.1:1234]
    #[arg(long, value_name = "WHERE", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = parse)]
    gdb: Option<Gdb>,
}

/// The value of `--gdb`.
#[derive(Clone, Debug)]
struct Gdb {
    address: Address,
    on_death: bool,
}

fn parse(text: &str) -> Result<Gdb, String> {
    let (on_death, address) = match text.strip_prefix(ON_DEATH) {
        Some("") => (true, ""),
        Some(rest) => (true, rest.strip_prefix(',').unwrap_or(text)),
        None => (false, text),
    };
    let address = match address {
        "" => Address::default(),
        text => text.parse().map_err(|error| format!("{error}, or on-death[,WHERE]"))?,
    };
    Ok(Gdb { address, on_death })
}

/// The width of the processor that gdb expects for this file: that of an ELF file.
pub fn width_of(file: Option<&Path>) -> Option<Width> {
    let mut head = [0; 5];
    File::open(file?).ok()?.read_exact(&mut head).ok()?;
    match head {
        [0x7f, b'E', b'L', b'F', 1] => Some(Width::Bits32),
        [0x7f, b'E', b'L', b'F', 2] => Some(Width::Bits64),
        _ => None,
    }
}

impl GdbArgs {
    /// True if gdb debugs the guest.
    pub fn is_given(&self) -> bool {
        self.gdb.is_some()
    }

    /// The socket that the server removes at its end.
    #[cfg(has_kvm)]
    pub fn socket(&self) -> Option<std::path::PathBuf> {
        match &self.gdb.as_ref()?.address {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp(_) => None,
        }
    }

    /// Waits for a debugger, if the user wants one.
    ///
    /// # Errors
    /// The address cannot be used, or KVM failed.
    pub fn server(&self, machine: &Machine, width: Option<Width>) -> Result<Option<Server>, Error> {
        let Some(Gdb { address, on_death }) = &self.gdb else { return Ok(None) };
        let mut server = Server::bind(address, *on_death).map_err(|error| {
            Error::Config(format!(
                "cannot wait for gdb at {address}: {error}: give another place with --gdb=PORT or --gdb=PATH"
            ))
        })?;
        if address.is_open_to_others() {
            log::warn!(
                "gdb: programs on other computers can reach {address} and control this guest: nothing protects it"
            );
        }
        let (facilities, info) = facilities(machine.processor())?;
        server.set_facilities(facilities, info);
        server.set_width(width);
        Ok(Some(server))
    }
}

/// The facilities of the guest's processor, and a text about them.
fn facilities(processor: Processor) -> Result<(Facilities, String), Error> {
    let found = probe_debugging(processor)?;
    let facilities = Facilities {
        unlimited: processor == Processor::Soft,
        steps: found.step_long || found.step_real,
        breakpoints: found.breakpoints,
        watchpoints: found.watchpoints,
        software: found.software,
    };
    let mut text = format!("processor: {processor}\nsteps in:");
    for (name, works) in [
        ("16-bit", found.step_real),
        ("32-bit", found.step_protected),
        ("64-bit", found.step_long),
        ("ring-3", found.step_user),
    ] {
        if works {
            text.push(' ');
            text += name;
        }
    }
    text += " code\n";
    Ok((facilities, text))
}

/// The debugger as the library knows it.
pub fn of(server: &mut Option<Server>) -> Option<&mut dyn Debugger> {
    server.as_mut().map(|server| server as &mut dyn Debugger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        let read = |text: &str| parse(text).map(|gdb| (gdb.on_death, gdb.address.to_string()));
        assert_eq!(read("").unwrap(), (false, "127.0.0.1:1234".into()));
        assert_eq!(read("on-death").unwrap(), (true, "127.0.0.1:1234".into()));
        assert_eq!(read("on-death,9").unwrap(), (true, "127.0.0.1:9".into()));
        assert_eq!(read("./gdb.sock").unwrap(), (false, "./gdb.sock".into()));
        assert!(read("on-deathly").is_err() && read("guest.bin").is_err());
    }
}
