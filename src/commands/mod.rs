//! What each word of the command line does, and the one `main` that all binaries share.

mod bench;
mod generate;
mod serve;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Task};
use crate::settings::{Overrides, Settings};
use crate::telemetry;

/// The whole program. `device` is what a binary for one kind of device computes on, unless settings say otherwise.
pub fn main(device: Option<&str>) -> ExitCode {
    let Cli { command, serve } = Cli::parse();
    let done = match command.unwrap_or(Task::Serve(serve)) {
        Task::Serve(args) => settings(args.settings.0, device).and_then(|settings| serve::run(&settings)),
        Task::Generate(args) => {
            settings(args.settings.0.clone(), device).and_then(|settings| generate::run(&args, &settings))
        }
        Task::Bench(args) => {
            settings(args.settings.0.clone(), device).and_then(|settings| bench::run(&args, &settings))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sd-worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn settings(mut overrides: Overrides, device: Option<&str>) -> Result<Settings, Box<dyn Error>> {
    overrides.base = device
        .map(|device| ("model.device", device.to_owned()))
        .into_iter()
        .collect();
    let settings = Settings::load(&overrides, |name| std::env::var(name).ok())?;
    telemetry::start(&settings.log)?;
    Ok(settings)
}
