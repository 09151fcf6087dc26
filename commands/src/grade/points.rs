//! Tasks, their points, and the evidence for them.

use grades::{Points, Visibility};
use std::borrow::Cow;

/// A task: its title, its points and the evidence. An empty title puts the evidence on the line of the points.
pub(super) struct Task {
    pub(super) title: Cow<'static, str>,
    pub(super) points: Points,
    pub(super) evidence: Vec<Evidence>,
}

/// The result of one check.
pub(super) struct Evidence {
    /// True if the check passed.
    pub(super) right: bool,
    pub(super) text: String,
    /// The points that the check costs if it failed; all of the task if it is missing.
    pub(super) cost: Option<Points>,
    /// True if the cost is that of a step, which comes on top of that of other steps.
    pub(super) is_step: bool,
}

impl Evidence {
    pub(super) fn new(right: bool, text: impl Into<String>) -> Self {
        Self { right, text: text.into(), cost: None, is_step: false }
    }

    /// Limits the cost of a failed check, and adds it to the text, with the rule that was broken.
    pub(super) fn costs(self, points: Points, rule: &str) -> Self {
        if self.right {
            return self;
        }
        let text = format!("{}: {rule}; costs {points} points", self.text);
        Self { text, cost: Some(points), ..self }
    }

    /// Makes the check a step of its task, which has these points of its own.
    #[cfg(has_kvm)]
    pub(super) fn step(self, points: Points) -> Self {
        let text = if self.right { self.text } else { format!("{}; costs {points} points", self.text) };
        Self { text, cost: Some(points), is_step: true, ..self }
    }
}

impl Evidence {
    /// The check of a grade.
    fn graded(self) -> grades::Check {
        grades::Check {
            passed: self.right,
            name: String::new(),
            text: self.text,
            cost: self.cost,
            visibility: Visibility::Shown,
        }
    }
}

impl Task {
    /// The points of a task. Two guests that break the same rule lose its points once. Those of its steps add up.
    pub(super) fn earned(&self) -> Points {
        let costs = |is_step| {
            let failed =
                self.evidence.iter().filter(move |evidence| !evidence.right && evidence.is_step == is_step);
            failed.map(|evidence| evidence.cost.unwrap_or(self.points))
        };
        let cost = costs(true).fold(costs(false).max().unwrap_or(Points::ZERO), Points::saturating_add);
        if self.evidence.is_empty() { Points::ZERO } else { self.points.saturating_sub(cost) }
    }

    /// The task of a grade.
    pub(super) fn graded(self) -> grades::Task {
        grades::Task {
            points: self.points,
            earned: self.earned(),
            name: self.title.into_owned(),
            checks: self.evidence.into_iter().map(Evidence::graded).collect(),
        }
    }
}

/// Evidence of a failed check.
pub(super) fn wrong(text: impl Into<String>) -> Evidence {
    Evidence::new(false, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_without_evidence_earns_nothing() {
        let task = |evidence| Task { title: "".into(), points: Points::whole(10), evidence };
        assert_eq!(task(vec![]).earned(), Points::whole(0));
        let right = || Evidence::new(true, "");
        assert_eq!(task(vec![right()]).earned(), Points::whole(10));
        assert_eq!(task(vec![right(), wrong("")]).earned(), Points::whole(0));
        let costs = |points| wrong("").costs(Points::whole(points), "");
        assert_eq!(task(vec![right(), costs(4), costs(3)]).earned(), Points::whole(6));
        assert_eq!(task(vec![costs(4), wrong("")]).earned(), Points::whole(0));
        assert_eq!(task(vec![right().costs(Points::whole(4), "")]).earned(), Points::whole(10));
    }
}
