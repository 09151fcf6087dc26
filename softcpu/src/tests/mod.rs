//! Tests that need descriptor tables.

mod debug;
mod far;
mod interrupts;
mod machine;
mod random;
mod returns;
mod segments;
mod single_step;
mod syscall;
mod tables;
