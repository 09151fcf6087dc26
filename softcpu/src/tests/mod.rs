//! Tests that need descriptor tables.

mod far;
mod interrupts;
mod machine;
mod random;
mod returns;
mod segments;
mod syscall;
mod tables;
