//! The output that vmchecker-next reads: the first `Total: N` is the grade, in whole points.

use crate::format::text;
use crate::{Grade, Options};

/// The grade in the first line, and then the evidence. Without a grade there is no such line.
pub fn output(grade: &Grade, options: Options) -> String {
    // Texts of a submission can neither be a total nor end the trace.
    let evidence = text::of_one(grade, options.for_student())
        .replace("Total:", "Total :")
        .replace("<VMCK_NEXT", "< VMCK_NEXT");
    match grade.error {
        None => format!("Total: {}\n{evidence}", grade.earned().rounded_down()),
        Some(_) => evidence,
    }
}
