//! What the step cache costs and saves: paints pictures without it and with several thresholds, prints a table of steps
//! reused, time and PSNR, and may write a sheet of the pictures (a row for each prompt; off, then each threshold).
//!
//! `cargo run --release --example step_cache -- --model FOLDER --prompt "a panda" --prompt "a fox" --sheet sheet.png`

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use image::RgbImage;
use image::imageops::replace;
use sd_worker::domain::draft::{Draft, Rules};
use sd_worker::domain::event::{Generation, Step};
use sd_worker::domain::limits::Limits;
use sd_worker::domain::load::{DeviceChoice, DtypeChoice, LoadOptions};
use sd_worker::domain::request::{GenerationRequest, OperationKind, StepCache};
use sd_worker::pipeline::{LoadWatch, Pipeline, PipelineError, Watch, load};

/// Paints with and without the step cache and compares.
#[derive(Debug, Parser)]
struct Args {
    /// Folder, file or hub id
    #[arg(long)]
    model: String,
    /// Number type
    #[arg(long, default_value = "f32")]
    dtype: DtypeChoice,
    /// What the pictures show; may be given several times
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// Denoising steps
    #[arg(long, default_value_t = 20)]
    steps: i64,
    /// Side in pixels
    #[arg(long, default_value_t = 128)]
    size: i64,
    /// Guidance scale
    #[arg(long)]
    guidance: Option<f64>,
    /// Sampler
    #[arg(long)]
    sampler: Option<String>,
    /// Noise schedule
    #[arg(long)]
    schedule: Option<String>,
    /// Seed of the first prompt; the next ones count up
    #[arg(long, default_value_t = 1)]
    seed: i128,
    /// Thresholds, or auto
    #[arg(long, value_delimiter = ',', default_value = "0.05,0.1,0.2,0.3,0.5")]
    thresholds: Vec<StepCache>,
    /// Where to write the sheet
    #[arg(long)]
    sheet: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let options = LoadOptions {
        model: Some(args.model.clone()),
        device: DeviceChoice::Cpu,
        dtype: args.dtype,
        ..LoadOptions::default()
    };
    let mut pipeline = load(&options, &mut Silent)?;
    let requests = requests(&args, pipeline.as_ref())?;
    let mut columns = vec![run(pipeline.as_mut(), &requests, StepCache::Off)?];
    println!("| step_cache | steps reused | denoising, s | speed | PSNR, dB (least) |");
    println!("|---|---|---|---|---|");
    for choice in &args.thresholds {
        let column = run(pipeline.as_mut(), &requests, *choice)?;
        print_row(*choice, &column, &columns[0], args.steps as usize * requests.len());
        columns.push(column);
    }
    if let Some(path) = &args.sheet {
        sheet(&columns).save(path)?;
    }
    Ok(())
}

fn requests(args: &Args, pipeline: &dyn Pipeline) -> Result<Vec<GenerationRequest>, Box<dyn Error>> {
    let limits = Limits::default();
    let rules = Rules {
        model: pipeline.info(),
        limits: &limits,
        step_cache: StepCache::Off,
        loras: &[],
    };
    let request = |(prompt, seed): (&String, i128)| {
        let draft = Draft {
            prompt: Some(prompt.clone()),
            width: Some(args.size),
            height: Some(args.size),
            steps: Some(args.steps),
            guidance_scale: args.guidance,
            sampler: args.sampler.clone(),
            schedule: args.schedule.clone(),
            seed: Some(seed),
            ..Draft::default()
        };
        Ok(draft.build(OperationKind::ImageGeneration, &rules)?)
    };
    args.prompt.iter().zip(args.seed..).map(request).collect()
}

/// One way of painting all prompts.
struct Column {
    pictures: Vec<RgbImage>,
    reused: u32,
    seconds: f64,
}

fn run(
    pipeline: &mut dyn Pipeline,
    requests: &[GenerationRequest],
    step_cache: StepCache,
) -> Result<Column, Box<dyn Error>> {
    let mut column = Column {
        pictures: Vec::new(),
        reused: 0,
        seconds: 0.0,
    };
    for request in requests {
        let request = GenerationRequest {
            step_cache,
            ..request.clone()
        };
        let done = paint(pipeline, &request)?;
        column.reused += done.timings.steps_reused;
        column.seconds += done.timings.denoise_s;
        for picture in &done.images {
            column
                .pictures
                .push(image::load_from_memory(&picture.bytes)?.into_rgb8());
        }
    }
    Ok(column)
}

fn paint(pipeline: &mut dyn Pipeline, request: &GenerationRequest) -> Result<Generation, PipelineError> {
    pipeline.generate(request, &mut Silent)
}

fn print_row(choice: StepCache, column: &Column, off: &Column, steps: usize) {
    let near: Vec<f64> = column
        .pictures
        .iter()
        .zip(&off.pictures)
        .map(|(a, b)| psnr(a, b))
        .collect();
    let mean = near.iter().sum::<f64>() / near.len() as f64;
    let least = near.iter().copied().fold(f64::INFINITY, f64::min);
    let name = match choice {
        StepCache::Off => "off".to_owned(),
        StepCache::Auto => "auto".to_owned(),
        StepCache::Threshold(threshold) => threshold.to_string(),
    };
    println!(
        "| {name} | {} of {steps} | {:.2} | {:.2}x | {mean:.1} ({least:.1}) |",
        column.reused,
        column.seconds,
        off.seconds / column.seconds,
    );
}

fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares = a
        .as_raw()
        .iter()
        .zip(b.as_raw())
        .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let mean = squares.sum::<f64>() / a.as_raw().len() as f64;
    // Equal pictures count as the nearest that 8 bits can tell apart.
    10.0 * (255.0 * 255.0 / mean.max(1e-4)).log10()
}

fn sheet(columns: &[Column]) -> RgbImage {
    let (width, height) = columns[0].pictures[0].dimensions();
    let rows = columns[0].pictures.len() as u32;
    let mut sheet = RgbImage::new(width * columns.len() as u32, height * rows);
    for (x, column) in (0u32..).zip(columns) {
        for (y, picture) in (0u32..).zip(&column.pictures) {
            replace(&mut sheet, picture, i64::from(x * width), i64::from(y * height));
        }
    }
    sheet
}

struct Silent;

impl LoadWatch for Silent {
    fn progress(&mut self, _stage: &str, _fraction: f32) {}
}

impl Watch for Silent {
    fn cancelled(&self) -> bool {
        false
    }

    fn step(&mut self, _step: Step) {}

    fn preview(&mut self, _step: Step, _image: RgbImage) {}
}
