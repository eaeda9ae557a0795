//! `generate`: one job without a server, with a progress bar.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::GenerateArgs;
use crate::domain::draft::{Draft, Rules};
use crate::domain::event::Step;
use crate::domain::picture::{EncodedImage, InputImage, InputMask, OutputFormat};
use crate::domain::request::{GenerationRequest, OperationKind};
use crate::pipeline::{LoadWatch, Pipeline, Watch, load};
use crate::settings::Settings;

/// Loads the model, paints, and writes the pictures.
///
/// # Errors
/// A flag that cannot be accepted, a model that cannot be loaded, a job that fails, a file that cannot be read or
/// written.
pub fn run(args: &GenerateArgs, settings: &Settings) -> Result<(), Box<dyn Error>> {
    let format = format_of(&args.output)?;
    let draft = draft(args, format)?;
    let options = settings.load_options()?;
    let mut pipeline = load_with_spinner(&options)?;
    let kind = match (&args.image, &args.mask) {
        (None, _) => OperationKind::ImageGeneration,
        (Some(_), None) => OperationKind::ImageTransform,
        (Some(_), Some(_)) => OperationKind::ImageInpaint,
    };
    let loras = lora_names(args);
    let limits = settings.request_limits();
    let rules = Rules {
        model: pipeline.info(),
        limits: &limits,
        step_cache: options.step_cache,
        loras: &loras,
    };
    let request = draft.build(kind, &rules)?;
    let images = paint(pipeline.as_mut(), &request)?;
    write(&images, &args.output)?;
    Ok(())
}

fn load_with_spinner(options: &crate::domain::load::LoadOptions) -> Result<Box<dyn Pipeline>, Box<dyn Error>> {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(120));
    let mut watch = Spinner(spinner);
    let pipeline = load(options, &mut watch)?;
    watch.0.finish_and_clear();
    Ok(pipeline)
}

struct Spinner(ProgressBar);

impl LoadWatch for Spinner {
    fn progress(&mut self, stage: &str, fraction: f32) {
        let message = if fraction > 0.0 {
            format!("{stage} {:.0} %", fraction * 100.0)
        } else {
            stage.to_owned()
        };
        self.0.set_message(message);
    }
}

fn paint(pipeline: &mut dyn Pipeline, request: &GenerationRequest) -> Result<Vec<EncodedImage>, Box<dyn Error>> {
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{bar:32} {pos}/{len} steps, {elapsed} gone, {eta} left",
    )?);
    let mut watch = Bar(bar);
    let generation = pipeline.generate(request, &mut watch)?;
    watch.0.finish_and_clear();
    for warning in &generation.warnings {
        eprintln!("warning: {warning}");
    }
    let timings = &generation.timings;
    eprintln!(
        "{:.1} s: text {:.1}, denoising {:.1}, decoding {:.1}",
        timings.total_s, timings.text_encode_s, timings.denoise_s, timings.vae_decode_s
    );
    Ok(generation.images)
}

struct Bar(ProgressBar);

impl Watch for Bar {
    fn cancelled(&self) -> bool {
        self.0.tick();
        false
    }

    fn begins(&mut self, total: u32) {
        self.0.set_length(u64::from(total));
    }

    fn step(&mut self, step: Step) {
        self.0.set_position(u64::from(step.step));
    }

    fn preview(&mut self, _step: Step, _image: RgbImage) {}
}

fn draft(args: &GenerateArgs, format: OutputFormat) -> Result<Draft, Box<dyn Error>> {
    let read = |path: &PathBuf| image::open(path).map_err(|e| format!("{}: {e}", path.display()));
    let image = args.image.as_ref().map(read).transpose()?;
    let mask = args.mask.as_ref().map(read).transpose()?;
    Ok(Draft {
        prompt: Some(args.prompt.clone()),
        negative_prompt: args.negative.clone(),
        width: args.size.map(|size| i64::from(size.width)),
        height: args.size.map(|size| i64::from(size.height)),
        steps: args.steps,
        guidance_scale: args.guidance,
        true_cfg_scale: args.true_cfg,
        seed: args.seed,
        n: args.n,
        sampler: args.sampler.clone(),
        schedule: args.schedule.clone(),
        loras: args.lora.iter().map(|text| lora(text)).collect::<Result<_, _>>()?,
        image: image.map(|image| InputImage(image.into_rgb8())),
        mask: mask.map(|mask| InputMask(mask.into_luma8())),
        strength: args.strength,
        feather: args.feather,
        clip_skip: args.clip_skip,
        output_format: Some(format.name().to_owned()),
        ..Draft::default()
    })
}

/// `NAME` or `NAME:STRENGTH`.
fn lora(text: &str) -> Result<(String, f64), String> {
    match text.rsplit_once(':') {
        None => Ok((text.to_owned(), 1.0)),
        Some((name, strength)) => {
            let wrong = |_| format!("--lora: `{text}` is no NAME:STRENGTH, for example ink:0.8");
            strength
                .parse()
                .map(|strength| (name.to_owned(), strength))
                .map_err(wrong)
        }
    }
}

/// The names as given: the pipeline resolves them below the configured folder.
fn lora_names(args: &GenerateArgs) -> Vec<String> {
    args.lora
        .iter()
        .filter_map(|text| lora(text).ok())
        .map(|(name, _)| name)
        .collect()
}

/// The format that a file's ending names.
fn format_of(path: &Path) -> Result<OutputFormat, String> {
    let ending = path
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    match ending.as_str() {
        "png" => Ok(OutputFormat::Png),
        "jpg" | "jpeg" => Ok(OutputFormat::Jpeg),
        "webp" => Ok(OutputFormat::Webp),
        _ => Err(format!(
            "--output: {} must end in .png, .jpg, .jpeg or .webp",
            path.display()
        )),
    }
}

fn write(images: &[EncodedImage], output: &Path) -> Result<(), Box<dyn Error>> {
    for (index, image) in images.iter().enumerate() {
        let path = if images.len() == 1 {
            output.to_owned()
        } else {
            numbered(output, index)
        };
        std::fs::write(&path, &image.bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("{} (seed {})", path.display(), image.seed);
    }
    Ok(())
}

/// `out.png` as `out-2.png`.
fn numbered(path: &Path, index: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{}.{ending}", index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_names_the_format() {
        assert_eq!(format_of(Path::new("a/b.PNG")), Ok(OutputFormat::Png));
        assert_eq!(format_of(Path::new("b.jpg")), Ok(OutputFormat::Jpeg));
        assert!(format_of(Path::new("b.gif")).unwrap_err().contains(".webp"));
    }

    #[test]
    fn several_pictures_are_numbered() {
        assert_eq!(numbered(Path::new("a/out.png"), 1), Path::new("a/out-2.png"));
    }

    #[test]
    fn a_lora_may_have_a_strength() {
        assert_eq!(lora("ink"), Ok(("ink".to_owned(), 1.0)));
        assert_eq!(lora("ink:-0.5"), Ok(("ink".to_owned(), -0.5)));
        assert!(lora("ink:much").is_err());
    }
}
