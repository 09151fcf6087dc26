//! The options of a batch.

use super::shard::Shard;
use clap::Args;
use std::num::NonZero;
use std::path::PathBuf;
use std::thread;

#[derive(Debug, Args)]
#[command(next_help_heading = "Grading for an exercise in a file")]
pub struct BatchArgs {
    /// More submissions: directories or files; after `merge`, more results files
    #[arg(value_name = "SUBMISSION")]
    pub more: Vec<PathBuf>,

    /// Also grade the submissions in this file, one path in each line; - is standard input
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    /// Number of submissions that are graded at the same time [default: the number of CPUs]
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    jobs: Option<NonZero<u16>>,

    /// Write each grade to this results file as soon as it is there, with all details
    #[arg(long, value_name = "FILE")]
    pub results: Option<PathBuf>,

    /// Go on with a batch that was interrupted: keep the grades in the file of --results
    #[arg(long, requires = "results")]
    pub resume: bool,

    /// Write a text file for each student into this directory, without the details of hidden checks
    #[arg(long, value_name = "DIR")]
    pub feedback: Option<PathBuf>,

    /// Grade one of several parts of the batch: NUMBER/COUNT, from 1/COUNT; auto takes it from a Slurm array, a Kubernetes
    /// Job (auto/COUNT) or CI_NODE_INDEX
    #[arg(long, value_name = "PART", value_parser = Shard::parse)]
    pub shard: Option<Shard>,

    /// Grade one submission for the program that started this one
    #[arg(long, hide = true)]
    pub child: bool,
}

fn parse_jobs(text: &str) -> Result<NonZero<u16>, String> {
    text.parse().map_err(|_| format!("give a number from 1 to {}", u16::MAX))
}

impl BatchArgs {
    /// The number of submissions that are graded at the same time.
    pub fn jobs(&self) -> usize {
        let jobs = self.jobs.map(|jobs| usize::from(jobs.get()));
        jobs.or_else(|| thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1)
    }

    /// An option that was given, and that has no meaning for a course.
    pub fn given(&self) -> Option<&'static str> {
        let options = [
            ("a second submission", !self.more.is_empty()),
            ("--results", self.results.is_some()),
            ("--feedback", self.feedback.is_some()),
        ];
        let given = options.into_iter().find(|(_, given)| *given).map(|(option, _)| option);
        given.or_else(|| self.foreign_to_merge())
    }

    /// An option that was given, and that has no meaning for a merge.
    pub fn foreign_to_merge(&self) -> Option<&'static str> {
        let options = [
            ("--from", self.from.is_some()),
            ("--jobs", self.jobs.is_some()),
            ("--resume", self.resume),
            ("--shard", self.shard.is_some()),
            ("--child", self.child),
        ];
        options.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
    }
}
