//! `sd-worker` that computes on a CUDA device unless told otherwise.

use std::process::ExitCode;

fn main() -> ExitCode {
    sd_worker::commands::main(Some("cuda"))
}
