//! Tests that need descriptor tables.

mod far;
mod interrupts;
mod machine;
mod returns;
mod segments;
mod syscall;
mod tables;
