//! `vmm bench`: what this VMM costs, measured by itself.

mod bare;
mod count;
mod pass;
mod scale;
mod sys;

use clap::{Args, Subcommand};

/// Options of `vmm bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Many VMs alive in one process at the same time, next to a bare program that does the same
    Scale(scale::ScaleArgs),
}

/// Measures, prints, and answers with the exit status.
pub fn main(arguments: &BenchArgs) -> u8 {
    match &arguments.bench {
        Bench::Scale(arguments) => scale::main(arguments),
    }
}
