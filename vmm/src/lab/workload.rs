//! One run of the comparison's guest. The host writes the parameters into the guest's memory, runs the guest, compares the
//! received data with the sent data, and reads the times from the guest's memory.

use crate::boot::Image;
use crate::console::input::Input;
use crate::console::output::Output;
use crate::error::Error;
use crate::exit::Stop;
use crate::host;
use crate::lab::variant::{Ring, Variant, Workload};
use crate::machine::{Machine, Processor, Report};
use crate::memory::{Gpa, GuestMemory};
use crate::profile::clock::Clock;
use simvirtio::abi;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;
use std::{fmt, io};

/// The parameters, four 32-bit words: flags, length of the message, number of echoes, length of each echo.
const PARAMETERS: Gpa = Gpa(0x1_3000);
/// The time-stamp counter before and after the message, two 64-bit words.
const TIMES: Gpa = Gpa(PARAMETERS.0 + 16);
/// The number of echoes that came back, a 32-bit word.
const DONE: Gpa = Gpa(PARAMETERS.0 + 32);
/// The ticks of each round trip, 32-bit words.
const SAMPLES: Gpa = Gpa(0x1_4000);
/// The bytes to send, repeatedly.
const PATTERN: Gpa = Gpa(0x9_4000);
/// The length of the pattern that a message repeats, in bytes.
const PERIOD: usize = 251 * 16;
/// The bits of an echo's number that are the offset of its first byte in the pattern.
const ECHO_MASK: u32 = 0x7ff;
/// The size of the pattern in memory. The longest echo fits at the last offset.
const PATTERN_SIZE: usize = 0x2000;

/// Flag: store TX head for each byte.
const EACH_BYTE: u32 = 1;
/// Flag: ring the doorbell.
const RINGS: u32 = 2;

/// The reason why a comparison stopped.
#[derive(Debug)]
pub enum ComparisonError {
    /// The host failed.
    Host(Error),
    /// A signal requested the end.
    Interrupted,
    /// The guest ended in another way than expected, or the received data differs from the sent data. The text names the
    /// variant and the difference.
    Wrong(String),
}

impl From<Error> for ComparisonError {
    fn from(error: Error) -> Self {
        Self::Host(error)
    }
}

impl fmt::Display for ComparisonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(error) => error.fmt(f),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for ComparisonError {}

/// The measurements of a run that sends one message.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// The length of the message, in bytes.
    pub bytes: u32,
    /// The number of exits of the whole run, with the handshake.
    pub exits: u64,
    /// The time from before the first store until the driver sees that the device has taken all bytes, by the guest's
    /// clock.
    pub time: Duration,
    /// The processor time of the vCPU's thread.
    pub vcpu: Duration,
    /// The processor time of the device's thread. `None` if the device does not have one.
    pub device: Option<Duration>,
    /// The duration of the run: see [`Report::elapsed`].
    pub elapsed: Duration,
}

/// The measurements of a run that sends echoes: short messages that the device sends back.
#[derive(Clone, Debug)]
pub struct Echoes {
    /// The number of exits of the whole run, with the handshake.
    pub exits: u64,
    /// The round trip times in nanoseconds, one for each echo: from before its first store until the driver has taken it
    /// back, by the guest's clock.
    pub round_trips: Vec<u64>,
    /// The processor time of the vCPU's thread.
    pub vcpu: Duration,
    /// The processor time of the device's thread. `None` if the device does not have one.
    pub device: Option<Duration>,
    /// The duration of the run: see [`Report::elapsed`].
    pub elapsed: Duration,
}

/// Runs a guest that only makes the handshake. Returns the number of its exits.
///
/// # Errors
/// See [`ComparisonError`].
pub fn run_handshake(variant: Variant, ring: Ring, workload: Workload) -> Result<u64, ComparisonError> {
    let handshake = Workload { bytes: 0, messages: 0, ..workload };
    Run::new(variant, ring, handshake)?.finish().map(|ran| ran.exits)
}

/// Runs a guest that sends the message of `workload`, and no echoes.
///
/// # Errors
/// See [`ComparisonError`].
pub fn run_message(variant: Variant, ring: Ring, workload: Workload) -> Result<Message, ComparisonError> {
    let ran = Run::new(variant, ring, Workload { messages: 0, ..workload })?.finish()?;
    let mut times = [0; 16];
    ran.memory.read(TIMES, &mut times);
    let [start, end] = [0, 8].map(|at| word(&times, at));
    Ok(Message {
        bytes: workload.bytes,
        exits: ran.exits,
        time: Duration::from_nanos(ran.clock.nanos(end.saturating_sub(start))),
        vcpu: ran.vcpu,
        device: ran.device,
        elapsed: ran.elapsed,
    })
}

/// Runs a guest that sends the echoes of `workload`, and no message.
///
/// # Errors
/// See [`ComparisonError`].
pub fn run_echoes(variant: Variant, ring: Ring, workload: Workload) -> Result<Echoes, ComparisonError> {
    let ran = Run::new(variant, ring, Workload { bytes: 0, ..workload })?.finish()?;
    let mut samples = vec![0; (workload.messages as usize).saturating_mul(4)];
    ran.memory.read(SAMPLES, &mut samples);
    let ticks = samples.chunks_exact(4).map(|ticks| u32::from_le_bytes(ticks.try_into().unwrap_or_default()));
    Ok(Echoes {
        exits: ran.exits,
        round_trips: ticks.map(|ticks| ran.clock.nanos(ticks.into())).collect(),
        vcpu: ran.vcpu,
        device: ran.device,
        elapsed: ran.elapsed,
    })
}

/// The 64-bit word at offset `at`. 0 past the end.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

/// The pattern, as it is in the guest's memory.
fn pattern() -> Vec<u8> {
    (0..PATTERN_SIZE).map(|index| (index % 251) as u8).collect()
}

/// The digest and the number of the bytes that the device should receive.
fn expected(workload: Workload) -> (u64, u64) {
    let pattern = pattern();
    let mut digest = DefaultHasher::new();
    let mut count: u64 = 0;
    let mut take = |byte: &u8| {
        digest.write_u8(*byte);
        count = count.saturating_add(1);
    };
    pattern.iter().take(PERIOD).cycle().take(workload.bytes as usize).for_each(&mut take);
    for echo in 0..workload.messages {
        let first = (echo & ECHO_MASK) as usize;
        pattern.iter().skip(first).take(workload.echo as usize).for_each(&mut take);
    }
    (digest.finish(), count)
}

/// A machine whose memory holds the guest and its parameters.
struct Run {
    variant: Variant,
    ring: Ring,
    workload: Workload,
    machine: Machine,
    memory: GuestMemory,
    clock: Clock,
}

/// The measurements of a run whose data was correct.
struct Ran {
    exits: u64,
    memory: GuestMemory,
    clock: Clock,
    vcpu: Duration,
    device: Option<Duration>,
    elapsed: Duration,
}

impl Run {
    fn new(variant: Variant, ring: Ring, workload: Workload) -> Result<Self, ComparisonError> {
        let image = Image::flat(guest::COMPARE, ring.mode(), Gpa(abi::EMBEDDED_CODE)).map_err(Error::from)?;
        let machine = Machine::builder(image)
            .processor(Some(Processor::Kvm))
            .transport(Some(variant.transport()))
            .queue_len(Some(workload.queue_len))
            .loopback(workload.messages > 0)
            .timeout(Some(timeout(workload)))
            .output(Output::new(io::sink(), true))
            .input(Input::bytes(b""))
            .build()?;
        let memory = machine.memory().clone();
        let each_byte = matches!(variant, Variant::Byte | Variant::Coalesced);
        let flags = u32::from(each_byte) * EACH_BYTE + u32::from(variant == Variant::Doorbell) * RINGS;
        let parameters = [flags, workload.bytes, workload.messages, workload.echo];
        let parameters: Vec<u8> = parameters.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(PARAMETERS, &parameters)?;
        memory.write(PATTERN, &pattern())?;
        let tsc_khz = machine.tsc_khz();
        if tsc_khz.is_none_or(|khz| khz == 0) {
            let source = io::Error::other(
                "KVM does not report the guest's TSC frequency, so times cannot be compared",
            );
            return Err(Error::Host { operation: "KVM_GET_TSC_KHZ", source }.into());
        }
        Ok(Self { variant, ring, workload, machine, memory, clock: Clock::new(tsc_khz) })
    }

    /// Runs the guest to its end, and checks the data that arrived.
    fn finish(self) -> Result<Ran, ComparisonError> {
        let Self { variant, ring, workload, mut machine, memory, clock } = self;
        let before = host::thread_cpu_time();
        let report = machine.run()?;
        let vcpu = host::thread_cpu_time().saturating_sub(before);
        if matches!(report.stop, Stop::Interrupted) {
            return Err(ComparisonError::Interrupted);
        }
        if let Some(error) = report.host_failure() {
            return Err(error.into());
        }
        check(&report, workload, &memory)
            .map_err(|what| ComparisonError::Wrong(format!("{variant} in ring {}: {what}", ring.number())))?;
        Ok(Ran {
            exits: report.profile.as_ref().map_or(0, |profile| profile.total().exits),
            memory,
            clock,
            vcpu,
            device: report.simvirtio.as_ref().and_then(|device| device.thread_time),
            elapsed: report.elapsed,
        })
    }
}

/// The timeout of a run. It is generous, because on a busy host each switch between threads can take long.
fn timeout(workload: Workload) -> Duration {
    const EACH: Duration = Duration::from_micros(400);
    let echoes = workload.messages.saturating_mul(workload.echo.saturating_add(8));
    Duration::from_secs(120) + EACH.saturating_mul(workload.bytes.saturating_add(echoes))
}

/// Checks that the guest ended as expected, and that the received data is the sent data.
///
/// # Errors
/// A sentence without the name of the variant.
fn check(report: &Report, workload: Workload, memory: &GuestMemory) -> Result<(), String> {
    match &report.stop {
        Stop::Exited(0) => {}
        Stop::Exited(1) => return Err("the guest's driver did not find the SIMVIRTIO device".into()),
        Stop::Exited(2) => {
            let mut done = [0; 4];
            memory.read(DONE, &mut done);
            return Err(format!("echo {} came back with different bytes", u32::from_le_bytes(done)));
        }
        Stop::Timeout(_) => {
            return Err("the run reached its timeout: stop other programs on this host, and try again".into());
        }
        stop => return Err(format!("the guest should exit with code 0, but the run ended with: {stop}")),
    }
    let Some(device) = &report.simvirtio else { return Err("the machine has no SIMVIRTIO device".into()) };
    let (digest, count) = expected(workload);
    if device.history.received != count {
        return Err(format!(
            "the driver sent {count} bytes, but the device received {}",
            device.history.received
        ));
    }
    if device.digest != digest {
        return Err(format!(
            "the device received {count} bytes, but they are not the bytes that the driver sent"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::simvirtio::Simvirtio;
    use simvirtio::Memory;
    use simvirtio::abi::Layout;

    #[test]
    fn the_expected_digest_is_the_digest_of_the_device() {
        let workload = Workload { bytes: 5000, messages: 0, echo: 1, queue_len: 256 };
        let memory = GuestMemory::new(&[(Gpa(0), abi::DOORBELL)]).unwrap();
        let mut device =
            Simvirtio::power_on(Layout::Table, 256, memory.clone(), Output::captured().0, Input::bytes(b""))
                .unwrap();
        let mut head = 0;
        let mut push = |byte| {
            memory.store_u8(abi::TX_BUFFER + head, byte);
            head = (head + 1) % 256;
            memory.store_u32(abi::WINDOW + abi::offset::TX_HEAD, head as u32);
            assert!(device.advance().is_continue());
        };
        push(b'R');
        push(b'C');
        memory.store_u8(abi::WINDOW + abi::offset::DRIVER_STATUS, abi::driver_status::DRIVER_OK);
        (0..5000).for_each(|index| push(((index % PERIOD) % 251) as u8));
        let report = device.report(crate::device::simvirtio::Transport::Polling);
        assert_eq!((report.digest, report.history.received), expected(workload));
        let other = Workload { bytes: 4999, ..workload };
        assert_ne!(report.digest, expected(other).0);
    }

    #[test]
    fn samples_and_pattern_fit_into_memory() {
        let samples = SAMPLES.0 + 4 * u64::from(super::super::MAX_MESSAGES);
        assert!(samples <= PATTERN.0 && PATTERN.0 + PATTERN_SIZE as u64 <= abi::RAM_SIZE / 2 + 0x2_0000);
        assert!(ECHO_MASK as usize + usize::from(abi::MAX_QUEUE_LEN) <= PATTERN_SIZE);
        assert_eq!(PERIOD % 251, 0, "a repeated pattern continues without a gap");
    }

    #[test]
    fn the_timeout_of_a_run_is_bounded() {
        let most = Workload {
            bytes: super::super::MAX_BYTES,
            messages: super::super::MAX_MESSAGES,
            echo: 4095,
            queue_len: 4096,
        };
        assert!(timeout(most) < Duration::from_secs(1 << 20));
        assert!(timeout(Workload { bytes: u32::MAX, messages: u32::MAX, ..most }) > timeout(most));
    }
}
