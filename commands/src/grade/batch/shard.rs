//! Shards: the parts of a batch for several hosts or jobs.

use std::fmt;

/// The most shards of a batch.
const MAX_SHARDS: usize = 10_000;

/// A shard: of `count` hosts, the one with this number, from 1. It has the submissions whose place in the batch is `number`,
/// `number + count` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub number: usize,
    pub count: usize,
}

impl Shard {
    /// The whole batch.
    pub const ALL: Self = Self { number: 1, count: 1 };

    /// Parses `2/4`, `auto` or `auto/4`.
    ///
    /// # Errors
    /// The text is neither, or the environment has no number for `auto`.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::with_environment(text, |name| std::env::var(name).ok())
    }

    fn with_environment(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let wrong = || "give NUMBER/COUNT such as 1/4, auto, or auto/COUNT".to_string();
        if let Some(rest) = text.strip_prefix("auto") {
            let count = match rest.strip_prefix('/') {
                Some(count) => Some(count.parse().map_err(|_| wrong())?),
                None if rest.is_empty() => None,
                None => return Err(wrong()),
            };
            return automatic(count, value);
        }
        let (number, count) = text.split_once('/').ok_or_else(wrong)?;
        Self::new(number.parse().map_err(|_| wrong())?, count.parse().map_err(|_| wrong())?)
    }

    fn new(number: usize, count: usize) -> Result<Self, String> {
        if !(1..=MAX_SHARDS).contains(&count) {
            return Err(format!("there are 1 to {MAX_SHARDS} shards, not {count}"));
        }
        match (1..=count).contains(&number) {
            true => Ok(Self { number, count }),
            false => Err(format!("the number of a shard of {count} is 1 to {count}, not {number}")),
        }
    }

    /// True if the submission at this place, from 0, belongs to the shard.
    pub fn has(self, index: usize) -> bool {
        index.checked_rem(self.count).is_some_and(|rest| rest.saturating_add(1) == self.number)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.number, self.count)
    }
}

/// The shard of this job of a Slurm array, a Kubernetes indexed Job, or a parallel job of a CI.
///
/// # Errors
/// The environment has no such job, has it without the number of jobs, or has wrong values.
fn automatic(count: Option<usize>, value: impl Fn(&str) -> Option<String>) -> Result<Shard, String> {
    let number = |name: &str| -> Result<Option<usize>, String> {
        let Some(text) = value(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("{name} must be a number, not {text:?}"))
    };
    // The number of the job from 1, and the number of jobs.
    let (place, jobs, source) = if let Some(task) = number("SLURM_ARRAY_TASK_ID")? {
        let least = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(1);
        let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1);
        let place = task.checked_sub(least).and_then(|place| place.checked_div(step)?.checked_add(1));
        (place, number("SLURM_ARRAY_TASK_COUNT")?, "SLURM_ARRAY_TASK_COUNT")
    } else if let Some(index) = number("JOB_COMPLETION_INDEX")? {
        (index.checked_add(1), None, "Kubernetes")
    } else if let Some(node) = number("CI_NODE_INDEX")? {
        (Some(node), number("CI_NODE_TOTAL")?, "CI_NODE_TOTAL")
    } else {
        return Err(
            "auto needs SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX or CI_NODE_INDEX in the environment: give NUMBER/COUNT"
                .into(),
        );
    };
    let count = match (jobs, count) {
        (Some(jobs), Some(count)) if jobs != count => {
            return Err(format!("auto/{count} contradicts {source}={jobs}: leave out one of them"));
        }
        (jobs, count) => jobs.or(count).ok_or_else(|| {
            let lacks =
                if source == "Kubernetes" { "Kubernetes does not say" } else { "the environment lacks" };
            format!("{lacks} the number of jobs: give auto/COUNT")
        })?,
    };
    Shard::new(place.unwrap_or(0), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, environment: &[(&str, &str)]) -> Result<String, String> {
        let value =
            |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        Shard::with_environment(text, value).map(|shard| shard.to_string())
    }

    #[test]
    fn shards_have_numbers_from_one() {
        assert_eq!(of("1/4", &[]), Ok("1/4".into()));
        for wrong in
            ["", "0/4", "5/4", "1/0", "1", "a/4", "1/4/2", "automatic", "auto/x", "-1/4", "1/99999", "auto"]
        {
            assert!(of(wrong, &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_submission_is_in_one_shard() {
        for count in 1..5 {
            for index in 0..20 {
                let shards = (1..=count).filter(|number| Shard { number: *number, count }.has(index));
                assert_eq!(shards.count(), 1);
            }
        }
        assert!(Shard { number: 1, count: 4 }.has(0));
    }

    #[test]
    fn jobs_of_batch_systems_know_their_shard() {
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "7"),
            ("SLURM_ARRAY_TASK_MIN", "3"),
            ("SLURM_ARRAY_TASK_STEP", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
        ];
        assert_eq!(of("auto", &slurm), Ok("3/4".into()));
        let kubernetes = [("JOB_COMPLETION_INDEX", "0")];
        assert_eq!(of("auto/3", &kubernetes), Ok("1/3".into()));
        assert!(of("auto", &kubernetes).unwrap_err().contains("give auto/COUNT"));
        let gitlab = [("CI_NODE_INDEX", "2"), ("CI_NODE_TOTAL", "2")];
        assert_eq!(of("auto", &gitlab), Ok("2/2".into()));
        assert!(of("auto/3", &gitlab).unwrap_err().contains("contradicts CI_NODE_TOTAL=2"));
        assert!(of("auto/3", &[("JOB_COMPLETION_INDEX", "3")]).unwrap_err().contains("1 to 3, not 4"));
        assert!(of("auto", &[("CI_NODE_INDEX", "x")]).unwrap_err().contains("must be a number"));
        assert!(of("auto", &[("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_TASK_MIN", "2")]).is_err());
    }
}
