//! `sd-worker` that computes on the CPU unless told otherwise.

use std::process::ExitCode;

fn main() -> ExitCode {
    sd_worker::commands::main(Some("cpu"))
}
