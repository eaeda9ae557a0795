use super::*;
use crate::schedulers::Prediction;

/// Runs `sampler` to the end on a picture that the model always predicts exactly.
fn paint(options: &Options, config: &SchedulerConfig) -> (Vec<f32>, Vec<usize>) {
    let target = [0.5f32, -1.0, 0.25, 2.0];
    let mut scheduler = build(options, config).unwrap();
    let start = [0.3f32, -0.7, 1.1, 0.2];
    let mut latents = scheduler.add_noise(&target, &start, 0);
    let mut done = Vec::new();
    for call in 0..scheduler.timesteps().len() {
        scheduler.step(call, &target, &mut latents, &mut ());
        done.push(scheduler.steps_done(call));
    }
    (latents, done)
}

#[test]
fn every_sampler_and_schedule_ends_at_the_predicted_picture() {
    let config = SchedulerConfig {
        prediction_type: Prediction::Sample,
        set_alpha_to_one: Some(true),
        ..SchedulerConfig::stable_diffusion()
    };
    for &sampler in Sampler::ALL {
        for &schedule in sampler.schedules() {
            for strength in [1.0, 0.5] {
                let options = Options {
                    schedule,
                    strength,
                    ..Options::new(sampler, 20)
                };
                let (latents, done) = paint(&options, &config);
                // DDPM leaves the model's variance of timestep 0, LCM keeps the boundary's share of the input.
                let tolerance = 0.02;
                for (x, expected) in latents.iter().zip([0.5f32, -1.0, 0.25, 2.0]) {
                    assert!(
                        (x - expected).abs() < tolerance,
                        "{sampler} {schedule} {strength}: {latents:?}"
                    );
                }
                assert_eq!(done.last(), Some(&((20.0 * strength) as usize)), "{sampler} {schedule}");
                assert!(done.is_sorted(), "{sampler} {schedule}");
            }
        }
    }
}

#[test]
fn a_single_precision_strength_does_the_steps_its_decimal_says() {
    let options = Options {
        strength: decimal(0.7),
        ..Options::new(Sampler::Euler, 10)
    };
    let scheduler = build(&options, &SchedulerConfig::stable_diffusion()).unwrap();
    assert_eq!(scheduler.steps(), 7);
}

#[test]
fn strength_0_has_nothing_to_do() {
    for &sampler in Sampler::ALL {
        let options = Options {
            strength: 0.0,
            ..Options::new(sampler, 10)
        };
        let scheduler = build(&options, &SchedulerConfig::stable_diffusion()).unwrap();
        assert!(scheduler.timesteps().is_empty(), "{sampler}");
        assert_eq!(
            scheduler.add_noise(&[1.0, 2.0], &[5.0, 5.0], 0),
            [1.0, 2.0],
            "{sampler}"
        );
    }
}

#[test]
fn any_number_of_steps_runs_without_nan() {
    for zero_snr in [false, true] {
        let config = SchedulerConfig {
            rescale_betas_zero_snr: zero_snr,
            prediction_type: Prediction::V,
            ..SchedulerConfig::stable_diffusion()
        };
        for &sampler in Sampler::ALL {
            for &schedule in sampler.schedules() {
                for steps in [1, 2, 3, 4, 5, 14, 15, 49, 61, 150] {
                    if sampler == Sampler::Lcm && schedule == Schedule::Default && steps > 50 {
                        continue;
                    }
                    let options = Options {
                        schedule,
                        ..Options::new(sampler, steps)
                    };
                    let (latents, done) = paint(&options, &config);
                    let finite = latents.iter().all(|x| x.is_finite());
                    assert!(finite, "{sampler} {schedule} {steps} zero_snr {zero_snr}: {latents:?}");
                    assert_eq!(done.last(), Some(&steps), "{sampler} {schedule}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_exist_is_refused_with_the_alternatives() {
    let flux = SchedulerConfig::flux_dev();
    let message = |options: &Options, config| build(options, config).err().map(|e| e.to_string());
    assert_eq!(
        message(&Options::new(Sampler::Ddim, 4), &flux).as_deref(),
        Some("sampler ddim does not exist for flow-matching models; allowed: euler, heun, dpmpp_2m")
    );
    let leading = Options {
        schedule: Schedule::DdimUniform,
        ..Options::new(Sampler::Euler, 4)
    };
    assert!(message(&leading, &flux).is_some_and(|m| m.contains("allowed: default, karras")));
    let sd = SchedulerConfig::stable_diffusion();
    assert!(message(&Options::new(Sampler::Lcm, 51), &sd).is_some_and(|m| m.contains("lcm takes 1 to 50")));
    assert!(message(&Options::new(Sampler::Euler, 0), &sd).is_some());
}

#[test]
fn flow_samplers_end_at_the_predicted_picture() {
    for config in [SchedulerConfig::flux_dev(), SchedulerConfig::flux_schnell()] {
        for &sampler in Sampler::FLOW {
            for &schedule in Schedule::FLOW {
                for steps in [1, 4, 20] {
                    let options = Options {
                        schedule,
                        image_tokens: 1024,
                        ..Options::new(sampler, steps)
                    };
                    let mut scheduler = build(&options, &config).unwrap();
                    let (target, start) = ([0.5f32, -1.0], [0.3f32, 0.9]);
                    let mut latents = start.to_vec();
                    for call in 0..scheduler.timesteps().len() {
                        let velocity: Vec<f32> = start.iter().zip(target).map(|(n, x)| n - x).collect();
                        scheduler.step(call, &velocity, &mut latents, &mut ());
                    }
                    for (x, expected) in latents.iter().zip(target) {
                        assert!((x - expected).abs() < 0.02, "{sampler} {schedule} {steps}: {latents:?}");
                    }
                }
            }
        }
    }
}
