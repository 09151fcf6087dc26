//! `vmm bench`: measures the cost of this VMM, compared with a bare program.

mod bare;
mod pass;
mod resources;
mod sample;
mod scale;
mod sys;
mod table;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vmm bench scale            1, 10, 100 and 1000 VMs at the same time
  vmm bench scale --vms 5    5 VMs

`vmm bench scale --help` lists the options.")]
pub struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Measure many VMs that are alive in one process at the same time, and a bare program that does the same
    Scale(scale::ScaleArgs),
}

/// Measures and prints the results. Returns the exit status.
pub fn main(arguments: &BenchArgs) -> u8 {
    match &arguments.bench {
        Bench::Scale(arguments) => scale::main(arguments),
    }
}
