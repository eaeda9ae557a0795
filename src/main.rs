//! `sd-worker`: serves, paints or measures, as the command line says.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sd_worker::commands::main(None)
}
