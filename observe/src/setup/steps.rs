//! A list of calls, in which repeated ones are folded.

use std::collections::VecDeque;

/// The largest number of steps of a list. Of later ones only the number is kept.
const MOST_STEPS: usize = 256;
/// The number of calls of one kind in a row that are shown before the rest is only counted.
const MOST_IN_A_ROW: usize = 6;
/// The number of answers that a row of questions shows.
const MOST_ANSWERS: usize = 12;

/// A call, or several that are shown together.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The vCPU; `None` for a call of a VM or of the system.
    pub(super) vcpu: Option<u32>,
    /// The name of the request.
    pub(super) name: String,
    /// The arguments in words; of questions, all of them.
    pub(super) words: VecDeque<String>,
    /// The error, and its meaning.
    pub(super) failure: Option<String>,
    /// True for a call that only asks.
    pub(super) is_question: bool,
    pub(super) count: u64,
    /// Only the number of these calls is known.
    pub(super) is_rest: bool,
}

impl Step {
    /// The line of this step, without the vCPU.
    pub(super) fn text(&self) -> String {
        let mut text = self.name.clone();
        if self.is_rest {
            return text + &format!(", {} more", self.count);
        }
        if self.count > 1 {
            text += &format!(", {} times", self.count);
        }
        let words = self.words();
        if !words.is_empty() {
            text += ": ";
            text += &words;
        }
        match &self.failure {
            Some(failure) => text + "; failed, " + failure,
            None => text,
        }
    }

    /// The arguments and results in words.
    pub(super) fn words(&self) -> String {
        let words: Vec<&str> =
            self.words.iter().map(String::as_str).filter(|words| !words.is_empty()).collect();
        let is_cut = self.is_question && self.count > words.len() as u64 && words.len() == MOST_ANSWERS;
        words.join(", ") + if is_cut { ", ..." } else { "" }
    }
}

/// The steps in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    pub(super) steps: Vec<Step>,
    /// The number of those past the limit.
    pub(super) more: u64,
    /// The number of steps of the same kind at the end.
    row: usize,
}

impl Steps {
    /// Appends a step, or adds it to the last one.
    pub(super) fn push(&mut self, step: Step) {
        let last = self.steps.last_mut();
        let same_kind = |last: &&mut Step| {
            last.vcpu == step.vcpu && last.name == step.name && last.failure == step.failure
        };
        let Some(last) = last.filter(same_kind) else {
            self.row = 1;
            return self.append(step);
        };
        if last.is_rest || last.words == step.words {
            last.count = last.count.saturating_add(1);
        } else if step.is_question && step.failure.is_none() {
            last.count = last.count.saturating_add(1);
            if last.words.len() < MOST_ANSWERS {
                last.words.extend(step.words);
            }
        } else if self.row >= MOST_IN_A_ROW {
            self.append(Step { is_rest: true, ..step });
        } else {
            self.row = self.row.saturating_add(1);
            self.append(step);
        }
    }

    fn append(&mut self, step: Step) {
        match self.steps.len() < MOST_STEPS {
            true => self.steps.push(step),
            false => self.more = self.more.saturating_add(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, words: &str, failure: Option<&str>) -> Step {
        Step {
            vcpu: None,
            name: name.into(),
            words: [words.to_string()].into(),
            failure: failure.map(String::from),
            is_question: name.starts_with("KVM_GET"),
            count: 1,
            is_rest: false,
        }
    }

    fn texts(steps: impl IntoIterator<Item = Step>) -> Vec<String> {
        let mut all = Steps::default();
        steps.into_iter().for_each(|step| all.push(step));
        all.steps.iter().map(Step::text).collect()
    }

    #[test]
    fn repeated_calls_are_one_line() {
        assert_eq!(
            texts([
                step("KVM_A", "x", None),
                step("KVM_A", "x", None),
                step("KVM_A", "y", None),
                step("KVM_B", "", None)
            ]),
            ["KVM_A, 2 times: x", "KVM_A: y", "KVM_B"]
        );
        assert_eq!(
            texts((0..3).map(|number| step("KVM_GET_A", &number.to_string(), None))),
            ["KVM_GET_A, 3 times: 0, 1, 2"]
        );
        let many = texts((0..214).map(|number| step("KVM_GET_A", &number.to_string(), None)));
        assert_eq!(many, ["KVM_GET_A, 214 times: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..."]);
        let rest = texts((0..20).map(|number| step("KVM_A", &number.to_string(), None)));
        assert_eq!((rest.len(), rest[6].as_str()), (7, "KVM_A, 14 more"));
    }

    #[test]
    fn failures_are_apart() {
        assert_eq!(
            texts([
                step("KVM_GET_A", "", None),
                step("KVM_GET_A", "", Some("EINVAL: why")),
                step("KVM_GET_A", "", None)
            ]),
            ["KVM_GET_A", "KVM_GET_A; failed, EINVAL: why", "KVM_GET_A"]
        );
    }

    #[test]
    fn the_list_is_limited() {
        let mut all = Steps::default();
        (0..1000).for_each(|number| all.push(step(&number.to_string(), "", None)));
        assert_eq!((all.steps.len(), all.more), (MOST_STEPS, 744));
    }
}
