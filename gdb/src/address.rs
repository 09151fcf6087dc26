//! The place where the server waits for gdb.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// The port of gdb's documentation, and of other virtual machines.
const PORT: u16 = 1234;

/// The place where the server waits for gdb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A text that is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressError;

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("give PORT, ADDRESS:PORT, or the path of a socket, which has a slash")
    }
}

impl std::error::Error for AddressError {}

/// Port 1234 on the loopback address.
impl Default for Address {
    fn default() -> Self {
        Self::Tcp((Ipv4Addr::LOCALHOST, PORT).into())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let port = text.strip_prefix(':').unwrap_or(text);
        if let Ok(port) = port.parse::<u16>() {
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok()) {
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        // No look-up of names: only numbers.
        let address = text.parse::<SocketAddr>().map_err(|_| AddressError)?;
        address.to_socket_addrs().ok().and_then(|mut found| found.next()).map(Self::Tcp).ok_or(AddressError)
    }
}

impl Address {
    /// True if programs on other computers can reach it.
    pub fn is_open_to_others(&self) -> bool {
        match self {
            Self::Tcp(address) => match address.ip() {
                IpAddr::V4(ip) => !ip.is_loopback(),
                IpAddr::V6(ip) => !ip.is_loopback(),
            },
            Self::Unix(_) => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => f.write_str(&vmm::host::printable(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let shown = |text: &str| text.parse::<Address>().map(|address| address.to_string());
        assert_eq!(shown("1234").unwrap(), "127.0.0.1:1234");
        assert_eq!(shown(":1").unwrap(), "127.0.0.1:1");
        assert_eq!(shown("localhost:5").unwrap(), "127.0.0.1:5");
        assert_eq!(shown("[::1]:9").unwrap(), "[::1]:9");
        assert_eq!(shown("./a.sock").unwrap(), "./a.sock");
        assert_eq!(shown("guest.bin"), Err(AddressError));
        assert_eq!(shown("99999"), Err(AddressError));
        assert_eq!(shown(""), Err(AddressError));
        assert!("0.0.0.0:1".parse::<Address>().unwrap().is_open_to_others());
        assert!(!Address::default().is_open_to_others());
    }
}
