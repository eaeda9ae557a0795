//! `bench`: how long the parts of a model take on this machine, with made-up weights of its real shapes.

use std::cell::Cell;
use std::error::Error;
use std::time::Instant;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use clap::ValueEnum;
use image::RgbImage;
use serde::Serialize;

use crate::cli::{BenchArgs, Shape};
use crate::domain::event::{Step, Timings};
use crate::domain::load::LoadOptions;
use crate::domain::picture::{InputImage, OutputFormat, Size};
use crate::domain::request::{GenerationRequest, Operation, PromptSyntax, StepCache};
use crate::domain::sampling::{Sampler, Schedule};
use crate::pipeline::{LoadWatch, Pipeline, PipelineError, Watch, device, load_files};
use crate::settings::Settings;
use crate::weights::{ModelFiles, ModelSpec, StoredType};

/// What was measured, in seconds and MB.
#[derive(Debug, Serialize)]
struct Report {
    shape: String,
    device: String,
    dtype: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    quant: Option<String>,
    size: u32,
    load_s: f64,
    text_encode_s: f64,
    /// One denoising step, with guidance where the model is guided: the median.
    step_s: f64,
    /// Steps that the step cache spared: how many, and the median of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    reused: Option<Reused>,
    vae_decode_s: f64,
    vae_encode_s: f64,
    peak_rss_mb: Option<u64>,
}

/// What the step cache spares.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Reused {
    steps: u32,
    step_s: f64,
}

/// Loads, warms up with one step, measures and prints.
///
/// # Errors
/// A size or type that the model cannot take, or the device refused.
pub fn run(args: &BenchArgs, settings: &Settings) -> Result<(), Box<dyn Error>> {
    if args.size < 64 || !args.size.is_multiple_of(16) {
        return Err(format!("--size: {} is no multiple of 16 from 64 on", args.size).into());
    }
    if args.steps == 0 {
        return Err("--steps: at least one step must be timed".into());
    }
    let report = measure(args, &settings.load_options()?)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print_table(&report);
    }
    Ok(())
}

fn measure(args: &BenchArgs, options: &LoadOptions) -> Result<Report, Box<dyn Error>> {
    let quant = args.quant.as_deref().map(quantised_type).transpose()?;
    let shape = shape_name(args.shape);
    let family = ModelFiles::random(&shape, StoredType::F32, StoredType::F32)?.family();
    let stored = match device::dtype(options.dtype, &device::open(options.device)?, family, false) {
        DType::BF16 => StoredType::Bf16,
        DType::F16 => StoredType::F16,
        _ => StoredType::F32,
    };
    let files = ModelFiles::random(&shape, quant.map_or(stored, StoredType::Ggml), stored)?;
    let begun = Instant::now();
    let mut pipeline = load_files(&ModelSpec::built_in(), &files, options, &mut Quiet)?;
    let load_s = begun.elapsed().as_secs_f64();

    let mut first = StepTimes::default();
    let warm_up = paint(pipeline.as_mut(), args.size, (1, StepCache::Off), &mut first)?;
    let mut times = StepTimes::default();
    let timings = paint(
        pipeline.as_mut(),
        args.size,
        (args.steps, options.step_cache),
        &mut times,
    )?;
    let (full, reused) = split(times.seconds, timings.steps_reused);
    let info = pipeline.info();
    Ok(Report {
        shape,
        device: info.device.clone(),
        dtype: info.dtype.clone(),
        quant: args.quant.clone(),
        size: args.size,
        load_s: rounded(load_s),
        // The second run finds its prompts remembered.
        text_encode_s: rounded(warm_up.text_encode_s),
        step_s: rounded(full),
        reused,
        vae_decode_s: rounded(timings.vae_decode_s),
        vae_encode_s: rounded(timings.vae_encode_s),
        peak_rss_mb: peak_rss_mb(),
    })
}

/// Paints over a picture at full strength: every part of the model runs.
fn paint(
    pipeline: &mut dyn Pipeline,
    side: u32,
    (steps, step_cache): (u32, StepCache),
    watch: &mut StepTimes,
) -> Result<Timings, PipelineError> {
    let size = Size {
        width: side,
        height: side,
    };
    let picture = RgbImage::from_fn(side, side, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8]));
    let request = GenerationRequest {
        operation: Operation::ImageToImage {
            image: InputImage(picture),
            strength: 1.0,
        },
        prompt: "a rusty robot walking on a beach".to_owned(),
        // FLUX is guided by an embedding: it takes no second pass.
        negative_prompt: if pipeline.info().family.is_flux() { "" } else { "blurry" }.to_owned(),
        prompt_syntax: PromptSyntax::Plain,
        size,
        steps,
        guidance_scale: 7.5,
        guidance_interval: (0.0, 1.0),
        true_cfg_scale: 1.0,
        seed: 1,
        count: 1,
        sampler: Sampler::Euler,
        schedule: Schedule::Default,
        loras: Vec::new(),
        clip_skip: 1,
        eta: 0.0,
        preview_every: 0,
        size_conditioning: None,
        step_cache,
        output_format: OutputFormat::Png,
    };
    Ok(pipeline.generate(&request, watch)?.timings)
}

/// The median of the full steps, and that of the `reused` ones, which are the quickest.
fn split(mut seconds: Vec<f64>, reused: u32) -> (f64, Option<Reused>) {
    seconds.sort_by(f64::total_cmp);
    let full = seconds.split_off(seconds.len().min(reused as usize));
    let reused = (!seconds.is_empty()).then(|| Reused {
        steps: reused,
        step_s: rounded(median(seconds)),
    });
    (median(full), reused)
}

/// Times each step from the question before it to its end.
#[derive(Default)]
struct StepTimes {
    asked: Cell<Option<Instant>>,
    seconds: Vec<f64>,
}

impl Watch for StepTimes {
    fn cancelled(&self) -> bool {
        self.asked.set(Some(Instant::now()));
        false
    }

    fn step(&mut self, _step: Step) {
        if let Some(asked) = self.asked.get() {
            self.seconds.push(asked.elapsed().as_secs_f64());
        }
    }

    fn preview(&mut self, _step: Step, _image: RgbImage) {}
}

struct Quiet;

impl LoadWatch for Quiet {
    fn progress(&mut self, _stage: &str, _fraction: f32) {}
}

fn shape_name(shape: Shape) -> String {
    shape
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

const QUANTISED: &[(&str, GgmlDType)] = &[
    ("q4_0", GgmlDType::Q4_0),
    ("q4_1", GgmlDType::Q4_1),
    ("q5_0", GgmlDType::Q5_0),
    ("q5_1", GgmlDType::Q5_1),
    ("q8_0", GgmlDType::Q8_0),
    ("q2_k", GgmlDType::Q2K),
    ("q3_k", GgmlDType::Q3K),
    ("q4_k", GgmlDType::Q4K),
    ("q5_k", GgmlDType::Q5K),
    ("q6_k", GgmlDType::Q6K),
];

fn quantised_type(name: &str) -> Result<GgmlDType, String> {
    let found = QUANTISED.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, format)| *format).ok_or_else(|| {
        let names: Vec<_> = QUANTISED.iter().map(|(known, _)| *known).collect();
        format!("--quant: `{name}` is not allowed; allowed: {}", names.join(", "))
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// The most memory this process has held, where the system says so.
fn peak_rss_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

fn print_table(report: &Report) {
    let quant = report
        .quant
        .as_ref()
        .map_or_else(String::new, |quant| format!(", {quant}"));
    println!(
        "{} at {2}x{2} on {1} in {3}{quant}",
        report.shape, report.device, report.size, report.dtype
    );
    println!("  load          {:>9.3} s", report.load_s);
    println!("  text encoders {:>9.3} s", report.text_encode_s);
    println!("  step          {:>9.3} s", report.step_s);
    if let Some(Reused { steps, step_s }) = report.reused {
        println!("  reused step   {step_s:>9.3} s, {steps} times");
    }
    println!("  VAE decode    {:>9.3} s", report.vae_decode_s);
    println!("  VAE encode    {:>9.3} s", report.vae_encode_s);
    if let Some(mb) = report.peak_rss_mb {
        println!("  peak memory   {mb:>9} MB");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn reused_steps_are_timed_apart() {
        assert_eq!(split(vec![2.0, 1.0, 3.0], 0), (2.0, None));
        let (full, reused) = split(vec![2.0, 0.5, 4.0, 0.25, 3.0], 2);
        assert_eq!(full, 3.0);
        assert_eq!(
            reused,
            Some(Reused {
                steps: 2,
                step_s: 0.375
            })
        );
    }

    #[test]
    fn an_unknown_type_lists_the_known_ones() {
        assert_eq!(quantised_type("Q4_0"), Ok(GgmlDType::Q4_0));
        assert!(quantised_type("q9").unwrap_err().contains("q5_k"));
    }

    #[test]
    fn this_process_holds_some_memory() {
        if cfg!(target_os = "linux") {
            assert!(peak_rss_mb().unwrap() > 1);
        }
    }
}
