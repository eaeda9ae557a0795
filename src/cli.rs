//! The command line: `serve` (also without a word), `generate`, `bench`. Flags of settings come from the table of settings.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::domain::picture::Size;
use crate::settings::{KEYS, Key, Overrides};

/// Owns one image model on one device and serves it over HTTP.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; without a word: serve.
    #[command(subcommand)]
    pub command: Option<Task>,
    /// Flags of `serve`, where no word is given.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Serve the model over HTTP (this is also what happens without a word)
    Serve(ServeArgs),
    /// Paint one job without a server
    Generate(Box<GenerateArgs>),
    /// Time the parts of a model with random weights of its real shapes; nothing is downloaded
    Bench(BenchArgs),
}

/// Flags of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Every setting.
    #[command(flatten)]
    pub settings: AllSettings,
}

/// Flags of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What the picture shows
    pub prompt: String,
    /// Where to write; several pictures get a number before the ending, which says the format (png, jpg, webp)
    #[arg(short, long, default_value = "out.png")]
    pub output: PathBuf,
    /// What it must not show
    #[arg(long)]
    pub negative: Option<String>,
    /// Denoising steps
    #[arg(long)]
    pub steps: Option<i64>,
    /// Guidance scale
    #[arg(long)]
    pub guidance: Option<f64>,
    /// FLUX: guidance with the negative prompt, above 1
    #[arg(long)]
    pub true_cfg: Option<f64>,
    /// Seed; without it, or with -1, a random one
    #[arg(long, allow_hyphen_values = true)]
    pub seed: Option<i128>,
    /// Pictures, with seeds counting up
    #[arg(short, long)]
    pub n: Option<i64>,
    /// WIDTHxHEIGHT in pixels
    #[arg(long)]
    pub size: Option<Size>,
    /// Sampler, such as dpmpp_2m or "DPM++ 2M Karras"
    #[arg(long)]
    pub sampler: Option<String>,
    /// Noise schedule, such as karras
    #[arg(long)]
    pub schedule: Option<String>,
    /// Picture to start from
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// How far to go from it: 0 gives it back, 1 forgets it
    #[arg(long, requires = "image")]
    pub strength: Option<f64>,
    /// Mask: white is painted anew
    #[arg(long, value_name = "FILE", requires = "image")]
    pub mask: Option<PathBuf>,
    /// Pixels over which the painted part fades into the kept part
    #[arg(long, requires = "mask")]
    pub feather: Option<i64>,
    /// LoRA below --lora-dir, as NAME or NAME:STRENGTH; may be given several times
    #[arg(long, value_name = "NAME:STRENGTH")]
    pub lora: Vec<String>,
    /// CLIP layers from the end
    #[arg(long)]
    pub clip_skip: Option<i64>,
    /// Settings of the model.
    #[command(flatten)]
    pub settings: PaintSettings,
}

/// Flags of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Whose shapes to take
    #[arg(long, value_enum, default_value = "sd15")]
    pub shape: Shape,
    /// Side of the square picture in pixels
    #[arg(long, default_value_t = 512)]
    pub size: u32,
    /// Steps to time, after one to warm up
    #[arg(long, default_value_t = 3)]
    pub steps: u32,
    /// Type of the transformer's or UNet's weights, such as q4_0 or q8_0
    #[arg(long)]
    pub quant: Option<String>,
    /// One line of JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Settings of the model.
    #[command(flatten)]
    pub settings: PaintSettings,
}

/// The models whose shapes `bench` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Stable Diffusion 1.5
    Sd15,
    /// Stable Diffusion 2.1
    Sd21,
    /// Stable Diffusion XL
    Sdxl,
    /// FLUX.1 schnell
    FluxSchnell,
    /// FLUX.1 dev
    FluxDev,
}

/// One flag for each setting.
#[derive(Debug)]
pub struct AllSettings(pub Overrides);

/// One flag for each setting that also matters without a server.
#[derive(Debug)]
pub struct PaintSettings(pub Overrides);

const CONFIG: &str = "config";

fn keys(all: bool) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| all || key.paints)
}

fn flags(command: Command, all: bool) -> Command {
    let config = Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Settings file (TOML) [env: SD_WORKER_CONFIG]");
    keys(all).fold(command.arg(config), |command, key| {
        let names = key.env_names().join(" or ");
        let arg = Arg::new(key.path)
            .long(key.flag)
            .action(ArgAction::Set)
            .value_name("VALUE")
            .hide_short_help(key.is_rare())
            .help(format!("{} [env: {names}]", key.help));
        command.arg(match key.alias {
            Some(alias) => arg.visible_alias(alias),
            None => arg,
        })
    })
}

fn overrides(matches: &ArgMatches, all: bool) -> Overrides {
    let value = |key: &Key| Some((key.path, matches.get_one::<String>(key.path)?.clone()));
    Overrides {
        file: matches.get_one::<PathBuf>(CONFIG).cloned(),
        base: Vec::new(),
        flags: keys(all).filter_map(value).collect(),
    }
}

macro_rules! flags_from_table {
    ($name:ident, $all:expr) => {
        impl Args for $name {
            fn augment_args(command: Command) -> Command {
                flags(command, $all)
            }

            fn augment_args_for_update(command: Command) -> Command {
                flags(command, $all)
            }
        }

        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(overrides(matches, $all)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = overrides(matches, $all);
                Ok(())
            }
        }
    };
}

flags_from_table!(AllSettings, true);
flags_from_table!(PaintSettings, false);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split_whitespace()).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_hives_line_means_serve() {
        let cli = parse(
            "sd-worker-cpu --worker-id flux-test --sd-version flux-schnell --port 7833 --callback-url http://localhost:7000",
        );
        assert!(cli.command.is_none());
        let flags = cli.serve.settings.0.flags;
        assert!(flags.contains(&("model.name", "flux-schnell".to_owned())));
        assert!(flags.contains(&("server.port", "7833".to_owned())));
        assert!(flags.contains(&("worker.id", "flux-test".to_owned())));
        assert!(flags.contains(&("hive.callback_url", "http://localhost:7000".to_owned())));
    }

    #[test]
    fn model_and_sd_version_are_one() {
        for line in ["sd-worker serve --model a/b", "sd-worker serve --sd-version a/b"] {
            let Some(Task::Serve(args)) = parse(line).command else {
                panic!("{line} is serve");
            };
            assert_eq!(args.settings.0.flags, [("model.name", "a/b".to_owned())]);
        }
    }

    #[test]
    fn generate_takes_its_prompt_and_flags() {
        let cli = Cli::try_parse_from([
            "sd-worker",
            "generate",
            "a panda",
            "-o",
            "p.png",
            "--seed",
            "-1",
            "--size",
            "512x768",
            "--lora",
            "ink:0.8",
            "--device",
            "cpu",
        ]);
        let Some(Task::Generate(args)) = cli.unwrap().command else {
            panic!("generate");
        };
        assert_eq!((args.prompt.as_str(), args.seed), ("a panda", Some(-1)));
        assert_eq!(args.size.unwrap().to_string(), "512x768");
        assert_eq!(args.settings.0.flags, [("model.device", "cpu".to_owned())]);
    }

    #[test]
    fn bench_has_its_shapes() {
        let Some(Task::Bench(args)) = parse("sd-worker bench --shape flux-schnell --quant q4_0 --json").command else {
            panic!("bench");
        };
        assert_eq!(args.shape, Shape::FluxSchnell);
        assert!(args.json);
    }

    #[test]
    fn a_mask_needs_an_image() {
        assert!(Cli::try_parse_from(["sd-worker", "generate", "x", "--mask", "m.png"]).is_err());
    }
}
