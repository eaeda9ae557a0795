//! Whole trajectories of every sampler with every schedule against diffusers; recipe:
//! `tests/fixtures/schedulers/make_schedulers.py`, which also says how the combinations that diffusers lacks were made.

use std::collections::BTreeMap;

use sd_worker::{
    domain::sampling::{Sampler, Schedule},
    pipeline::noise::TorchGenerator,
    schedulers::{NoiseSource, Options, SchedulerConfig, build},
};
use serde::Deserialize;

/// Relative to the largest value of the latents at that call.
const TOLERANCE: f32 = 5e-6;
/// Absolute, in training timesteps.
const TIMESTEP_TOLERANCE: f32 = 1e-4;
const SIZE: usize = 8;

#[derive(Deserialize)]
struct Fixture {
    seed: u64,
    configs: BTreeMap<String, serde_json::Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize, Debug)]
struct Case {
    config: String,
    sampler: Sampler,
    schedule: Schedule,
    steps: usize,
    strength: f64,
    eta: f32,
    tokens: usize,
}

/// The recipe's `model`.
fn model(x: &[f32], t: f32) -> Vec<f32> {
    (0..SIZE)
        .map(|i| 0.9 * (0.7 * x[i] + 0.3 * x[(i + 1) % SIZE]).tanh() + 0.05 * (0.01 * t + i as f32).cos())
        .collect()
}

fn distance(ours: &[f32], theirs: &[f32]) -> f32 {
    let scale = theirs.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    ours.iter().zip(theirs).fold(0.0f32, |m, (a, b)| {
        let off = (a - b).abs() / scale;
        if off.is_nan() { f32::INFINITY } else { m.max(off) }
    })
}

/// Walks through one case and gives the largest relative distance from the recorded trajectory.
fn walk(case: &Case, config: &SchedulerConfig, seed: u64, recorded: &mut &[f32]) -> (f32, f32) {
    let mut take = |n: usize| {
        let (head, rest) = recorded.split_at(n);
        *recorded = rest;
        head
    };
    let options = Options {
        schedule: case.schedule,
        strength: case.strength,
        eta: case.eta,
        image_tokens: case.tokens,
        ..Options::new(case.sampler, case.steps)
    };
    let mut scheduler = build(&options, config).unwrap();
    let mut generator = TorchGenerator::new(seed);
    let noise = generator.randn(SIZE);
    let original: Vec<f32> = (0..SIZE).map(|i| -1.5 + 3.0 / 7.0 * i as f32).collect();

    let sigma = scheduler.init_noise_sigma();
    let mut worst = distance(&[sigma], take(1));
    let timesteps = scheduler.timesteps().to_vec();
    let times = take(timesteps.len());
    let off_time = timesteps
        .iter()
        .zip(times)
        .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    let mut latents: Vec<f32> = if case.strength < 1.0 {
        scheduler.add_noise(&original, &noise, 0)
    } else {
        noise.iter().map(|n| n * sigma).collect()
    };
    for (call, t) in timesteps.iter().enumerate() {
        let mut input = latents.clone();
        scheduler.scale_model_input(call, &mut input);
        scheduler.step(
            call,
            &model(&input, *t),
            &mut latents,
            &mut generator as &mut dyn NoiseSource,
        );
        worst = worst.max(distance(&latents, take(SIZE)));
        assert!(scheduler.denoised().iter().all(|x| x.is_finite()));
    }
    worst = worst.max(distance(&scheduler.add_noise(&original, &noise, 0), take(SIZE)));
    if timesteps.len() > 1 {
        worst = worst.max(distance(&scheduler.add_noise(&original, &noise, 1), take(SIZE)));
    }
    (worst, off_time)
}

#[test]
fn trajectories_follow_diffusers() {
    let fixture: Fixture = serde_json::from_str(include_str!("../fixtures/schedulers/cases.json")).unwrap();
    let bytes = include_bytes!("../fixtures/schedulers/numbers.f32");
    let numbers: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    let mut recorded = numbers.as_slice();
    let mut failures = Vec::new();
    for case in &fixture.cases {
        let config = SchedulerConfig::from_json(&fixture.configs[&case.config].to_string()).unwrap();
        let (worst, off_time) = walk(case, &config, fixture.seed, &mut recorded);
        if worst > TOLERANCE || off_time > TIMESTEP_TOLERANCE {
            failures.push(format!("{worst:e} (timesteps {off_time:e}) {case:?}"));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        fixture.cases.len(),
        failures.join("\n")
    );
    assert!(recorded.is_empty());
}
