//! `sd-worker` that computes on Apple's GPU unless told otherwise.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sd_worker::commands::main(Some("metal"))
}
