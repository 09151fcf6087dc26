//! The comparison of the transports: one workload over each of them, measured in interleaved rounds.
//!
//! The workload is one SIMVIRTIO message, then echoes: short messages that the device sends back. The guest is the same
//! for all transports (`guest/payloads/compare.asm`). It reads its parameters from memory, and times each round trip
//! itself. `docs/compare.md` explains the numbers.

use crate::host;
use crate::lab::stats::{Spread, percentile};
use crate::lab::variant::{Ring, Variant, Workload};
use crate::lab::workload::{ComparisonError, Echoes, Message, run_echoes, run_handshake, run_message};
use std::time::Duration;

/// The maximum length of the message, in bytes.
pub const MAX_BYTES: u32 = 16 << 20;
/// The maximum number of echoes in one run. The guest has room for as many times.
pub const MAX_MESSAGES: u32 = 100_000;
/// The maximum number of rounds.
pub const MAX_ROUNDS: u32 = 1000;

/// One row of the comparison: a variant in a ring, and its measurements.
#[derive(Clone, Debug)]
pub struct Row {
    /// The variant.
    pub variant: Variant,
    /// The ring.
    pub ring: Ring,
    /// The exits of a run that only makes the handshake. They are subtracted from those of the other runs.
    handshake_exits: Option<u64>,
    messages: Vec<Message>,
    echoes: Vec<Echoes>,
}

impl Row {
    /// Creates a row without measurements.
    pub fn new(variant: Variant, ring: Ring) -> Self {
        Self { variant, ring, handshake_exits: None, messages: Vec::new(), echoes: Vec::new() }
    }

    /// Runs the workload once, and adds the results as a round.
    ///
    /// # Errors
    /// See [`ComparisonError`].
    pub fn measure(&mut self, workload: Workload) -> Result<(), ComparisonError> {
        if self.handshake_exits.is_none() {
            self.handshake_exits = Some(run_handshake(self.variant, self.ring, workload)?);
        }
        let message = run_message(self.variant, self.ring, workload)?;
        let echoes = run_echoes(self.variant, self.ring, workload)?;
        self.messages.push(message);
        self.echoes.push(echoes);
        Ok(())
    }

    /// The number of complete rounds.
    pub fn rounds(&self) -> usize {
        self.echoes.len()
    }

    /// The spread of a value of the messages.
    fn over_messages(&self, value: impl Fn(&Message) -> f64) -> Spread {
        Spread::of(self.messages.iter().map(value))
    }

    /// The spread of a value of the echoes.
    fn over_echoes(&self, value: impl Fn(&Echoes) -> f64) -> Spread {
        Spread::of(self.echoes.iter().map(value))
    }

    /// The number of exits of the message, from its first byte until the device has taken all of it. The exits of the
    /// handshake are subtracted.
    pub fn exits_per_message(&self) -> Spread {
        let handshake = self.handshake_exits.unwrap_or(0);
        self.over_messages(|message| message.exits.saturating_sub(handshake) as f64)
    }

    /// The number of exits per echo: the mean of a round. The exits of the handshake are subtracted.
    pub fn exits_per_round_trip(&self) -> Spread {
        let handshake = self.handshake_exits.unwrap_or(0);
        self.over_echoes(|echoes| {
            echoes.exits.saturating_sub(handshake) as f64 / echoes.round_trips.len().max(1) as f64
        })
    }

    /// The throughput of the message in bytes per second, by the guest's clock.
    pub fn bytes_per_second(&self) -> Spread {
        self.over_messages(|message| f64::from(message.bytes) / message.time.as_secs_f64().max(1e-9))
    }

    /// The round trip time in nanoseconds that the fraction `part` (0 to 1) of a round's echoes do not exceed.
    pub fn round_trip(&self, part: f64) -> Spread {
        self.over_echoes(|echoes| percentile(&echoes.round_trips, part))
    }

    /// The processor time of the vCPU's thread per round, in seconds. If the device does not have a thread of its own, this
    /// includes the work of the device.
    pub fn vcpu_seconds(&self) -> Spread {
        self.both(|message| message.vcpu, |echoes| echoes.vcpu)
    }

    /// The processor time of the device's thread per round, in seconds. `None` if the device does not have one.
    pub fn device_seconds(&self) -> Option<Spread> {
        let has_thread = self.variant.transport().shares_memory();
        has_thread.then(|| {
            let time = |time: Option<Duration>| time.unwrap_or_default();
            self.both(|message| time(message.device), |echoes| time(echoes.device))
        })
    }

    /// The fraction of the time that the device's thread uses a processor, from 0 to 1. `None` if the device does not have
    /// one.
    pub fn device_busy(&self) -> Option<f64> {
        let elapsed = self.both(|message| message.elapsed, |echoes| echoes.elapsed).median;
        self.device_seconds().map(|seconds| (seconds.median / elapsed.max(1e-9)).min(1.0))
    }

    /// The spread of a time per round: the message's plus the echoes', in seconds.
    fn both(&self, message: impl Fn(&Message) -> Duration, echoes: impl Fn(&Echoes) -> Duration) -> Spread {
        let pairs = self.messages.iter().zip(&self.echoes);
        Spread::of(pairs.map(|(one, other)| (message(one) + echoes(other)).as_secs_f64()))
    }
}

/// Measures `rounds` rounds. In each round every row runs once, so that a disturbance of the host affects all rows. Calls
/// `after_round` with the number of each complete round, from 1.
///
/// # Errors
/// The first error ends the comparison: see [`ComparisonError`]. Earlier measurements stay in the rows.
pub fn run(
    rows: &mut [Row],
    workload: Workload,
    rounds: u32,
    mut after_round: impl FnMut(u32),
) -> Result<(), ComparisonError> {
    for round in 1..=rounds {
        for row in &mut *rows {
            if host::interrupted() {
                return Err(ComparisonError::Interrupted);
            }
            row.measure(workload)?;
        }
        after_round(round);
    }
    Ok(())
}
