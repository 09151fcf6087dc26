//! One workload over every way of talking to a device, in one interleaved run: what each costs, and what it buys.
//!
//! The workload is a SIMVIRTIO message, and echoes: short messages that the device gives back. It is one guest
//! (`guest/payloads/compare.asm`), which takes its parameters from memory and stamps each round trip itself.
//! `docs/compare.md` says what the numbers mean.

use crate::host;
use crate::lab::stats::{Spread, percentile};
use crate::lab::variant::{Ring, Variant, Workload};
use crate::lab::workload::{ComparisonError, Echoes, Message, run_echoes, run_handshake, run_message};
use std::time::Duration;

/// The most bytes that a message may have.
pub const MAX_BYTES: u32 = 16 << 20;
/// The most echoes that one run may have: so many have room for their times.
pub const MAX_MESSAGES: u32 = 100_000;
/// The most rounds.
pub const MAX_ROUNDS: u32 = 1000;

/// A variant in a ring, and what was measured of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// The variant.
    pub variant: Variant,
    /// The ring.
    pub ring: Ring,
    /// Exits of a run that sends nothing, of which the others are free.
    idle: Option<u64>,
    messages: Vec<Message>,
    echoes: Vec<Echoes>,
}

impl Row {
    /// Nothing measured yet.
    pub fn new(variant: Variant, ring: Ring) -> Self {
        Self { variant, ring, idle: None, messages: Vec::new(), echoes: Vec::new() }
    }

    /// Runs the workload once and keeps what comes of it.
    ///
    /// # Errors
    /// The host failed, somebody interrupted it, or what arrived is not what was sent.
    pub fn measure(&mut self, workload: Workload) -> Result<(), ComparisonError> {
        if self.idle.is_none() {
            self.idle = Some(run_handshake(self.variant, self.ring, workload)?);
        }
        let message = run_message(self.variant, self.ring, workload)?;
        let echoes = run_echoes(self.variant, self.ring, workload)?;
        self.messages.push(message);
        self.echoes.push(echoes);
        Ok(())
    }

    /// How many rounds it has.
    pub fn rounds(&self) -> usize {
        self.echoes.len()
    }

    fn of_messages(&self, value: impl Fn(&Message) -> f64) -> Spread {
        Spread::of(self.messages.iter().map(value))
    }

    fn of_echoes(&self, value: impl Fn(&Echoes) -> f64) -> Spread {
        Spread::of(self.echoes.iter().map(value))
    }

    /// Exits of the message, from its first byte until the device has taken all: without those of the handshake.
    pub fn exits_per_message(&self) -> Spread {
        let idle = self.idle.unwrap_or(0);
        self.of_messages(|message| message.exits.saturating_sub(idle) as f64)
    }

    /// Exits of one echo.
    pub fn exits_per_round_trip(&self) -> Spread {
        let idle = self.idle.unwrap_or(0);
        self.of_echoes(|echoes| {
            echoes.exits.saturating_sub(idle) as f64 / echoes.round_trips.len().max(1) as f64
        })
    }

    /// Bytes of the message in a second, by the driver's clock.
    pub fn bytes_per_second(&self) -> Spread {
        self.of_messages(|message| f64::from(message.bytes) / message.time.as_secs_f64().max(1e-9))
    }

    /// The round trip that `part` of all (0 to 1) do not exceed, in nanoseconds.
    pub fn round_trip(&self, part: f64) -> Spread {
        self.of_echoes(|echoes| percentile(&echoes.round_trips, part))
    }

    /// Processor time of the vCPU's thread for a round, in seconds. Where the device has no thread of its own its work is
    /// in this.
    pub fn vcpu_seconds(&self) -> Spread {
        self.both(|message| message.vcpu, |echoes| echoes.vcpu)
    }

    /// Processor time of the device's own thread for a round, in seconds.
    pub fn device_seconds(&self) -> Option<Spread> {
        let own = self.variant.transport().shares_memory();
        own.then(|| {
            let time = |time: Option<Duration>| time.unwrap_or_default();
            self.both(|message| time(message.device), |echoes| time(echoes.device))
        })
    }

    /// How much of the time the device's own thread works, from 0 to 1.
    pub fn device_busy(&self) -> Option<f64> {
        let elapsed = self.both(|message| message.elapsed, |echoes| echoes.elapsed).median;
        self.device_seconds().map(|seconds| (seconds.median / elapsed.max(1e-9)).min(1.0))
    }

    fn both(&self, message: impl Fn(&Message) -> Duration, echoes: impl Fn(&Echoes) -> Duration) -> Spread {
        let pairs = self.messages.iter().zip(&self.echoes);
        Spread::of(pairs.map(|(one, other)| (message(one) + echoes(other)).as_secs_f64()))
    }
}

/// Runs the rows `rounds` times, each once in a round, so that what disturbs the host disturbs all of them. Calls
/// `after` with the number of each round that is over.
///
/// # Errors
/// The first failure. What was measured before stays in the rows.
pub fn run(
    rows: &mut [Row],
    workload: Workload,
    rounds: u32,
    mut after: impl FnMut(u32),
) -> Result<(), ComparisonError> {
    for round in 1..=rounds {
        for row in &mut *rows {
            if host::interrupted() {
                return Err(ComparisonError::Interrupted);
            }
            row.measure(workload)?;
        }
        after(round);
    }
    Ok(())
}
