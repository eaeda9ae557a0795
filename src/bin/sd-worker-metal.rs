//! `sd-worker` that computes on Apple's GPU unless told otherwise.

use std::process::ExitCode;

fn main() -> ExitCode {
    sd_worker::commands::main(Some("metal"))
}
