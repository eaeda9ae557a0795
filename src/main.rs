//! `sd-worker`: serves, paints or measures, as the command line says.

use std::process::ExitCode;

fn main() -> ExitCode {
    sd_worker::commands::main(None)
}
