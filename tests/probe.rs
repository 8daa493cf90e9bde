//! This machine's GPUs, through the real binary, on imaginary GPUs of the driver and NVML; with `VRAMFIT_REAL_GPU=1` the
//! same rules are held against the real ones of the machine.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types
)] // tests start processes and may panic

#[path = "common/command.rs"]
mod command;
#[path = "common/schema.rs"]
mod schema;

#[path = "probe/driver.rs"]
mod driver;
#[path = "probe/faults.rs"]
mod faults;
#[path = "probe/play.rs"]
mod play;
#[path = "probe/real.rs"]
mod real;
