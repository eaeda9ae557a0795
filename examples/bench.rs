//! Interim command line of `bench`, until the program has its own.
use clap::Parser;
use sd_worker::settings::{Overrides, Settings};
use sd_worker::{domain, pipeline, settings, weights};

#[path = "../src/commands/bench.rs"]
mod bench;

mod cli {
    use clap::{Parser, ValueEnum};

    #[derive(Parser)]
    pub struct BenchArgs {
        #[arg(long, value_enum, default_value = "sd15")]
        pub shape: Shape,
        #[arg(long, default_value_t = 512)]
        pub size: u32,
        #[arg(long, default_value_t = 3)]
        pub steps: u32,
        #[arg(long)]
        pub quant: Option<String>,
        #[arg(long)]
        pub json: bool,
        #[arg(long, default_value = "f32")]
        pub dtype: String,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
    pub enum Shape {
        Sd15,
        Sd21,
        Sdxl,
        FluxSchnell,
        FluxDev,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = cli::BenchArgs::parse();
    let flags = Overrides {
        flags: vec![("model.dtype", args.dtype.clone())],
        ..Overrides::default()
    };
    bench::run(&args, &Settings::load(&flags, |_| None)?)
}
