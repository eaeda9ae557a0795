//! `sd-worker` that computes on the CPU unless told otherwise.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sd_worker::commands::main(Some("cpu"))
}
