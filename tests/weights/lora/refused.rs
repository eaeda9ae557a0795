//! LoRAs that do not fit, and damaged ones.

use sd_worker::weights::lora::{Applied, LoraDir, LoraError, Loras};

use crate::support::{Given, f32s, write};

use super::support::{every, folder_with, made, named};

#[test]
fn keys_that_match_nothing_are_reported_and_none_matching_is_an_error() {
    let layers = made(&[("conv_in", &[2, 3])], false);
    let (_root, mut loras) = folder_with(&[
        f32s("lora_unet_conv_in.lora_down.weight", &[1, 3], &[1.0; 3]),
        f32s("lora_unet_conv_in.lora_up.weight", &[2, 1], &[1.0; 2]),
        f32s("lora_unet_elsewhere.lora_down.weight", &[1, 3], &[1.0; 3]),
        f32s("lora_unet_elsewhere.lora_up.weight", &[2, 1], &[1.0; 2]),
        f32s("something.bias", &[1], &[1.0]),
    ]);
    let Applied { warnings, .. } = loras.apply(&[named("x", 1.0)], &layers).unwrap();
    assert_eq!(
        warnings,
        ["lora `x`: 2 of 3 keys match nothing in this model: `something.bias`, `lora_unet_elsewhere`"]
    );
    let (_root, mut loras) = folder_with(&[f32s("lora_unet_elsewhere.lora_down.weight", &[1, 3], &[1.0; 3])]);
    let error = loras.apply(&[named("x", 1.0)], &layers).unwrap_err();
    assert!(
        matches!(error, LoraError::NothingMatches { .. }) && error.is_callers(),
        "{error}"
    );
    assert!(error.to_string().contains("lora_unet_elsewhere"), "{error}");
}

#[test]
fn a_lora_of_another_model_or_with_damage_leaves_the_weights_alone() {
    let layers = made(&[("conv_in", &[2, 3]), ("conv_out", &[2, 3])], false);
    let before = every(&layers);
    let good = |tensors: Vec<Given>| {
        let mut all = tensors;
        all.push(f32s("lora_unet_conv_in.lora_down.weight", &[1, 3], &[1.0; 3]));
        all.push(f32s("lora_unet_conv_in.lora_up.weight", &[2, 1], &[1.0; 2]));
        all
    };
    let down = |shape: &[usize]| {
        f32s(
            "lora_unet_conv_out.lora_down.weight",
            shape,
            &vec![1.0; shape.iter().product()],
        )
    };
    let up = |shape: &[usize]| {
        f32s(
            "lora_unet_conv_out.lora_up.weight",
            shape,
            &vec![1.0; shape.iter().product()],
        )
    };
    let cases: Vec<(Vec<Given>, &str)> = vec![
        (
            vec![down(&[1, 5]), up(&[2, 1])],
            "is for another model: `lora_unet_conv_out` changes 10 numbers",
        ),
        (vec![down(&[1, 3])], "incomplete: it has only Down"),
        (vec![down(&[2, 3]), up(&[2, 1])], "do not fit together"),
        (vec![down(&[0, 3]), up(&[2, 0])], "rank is 0"),
        (vec![f32s("lora_unet_conv_out.diff", &[2, 3], &[f32::NAN; 6])], "NaN"),
    ];
    for (tensors, expected) in cases {
        let (_root, mut loras) = folder_with(&good(tensors));
        let error = loras.apply(&[named("x", 1.0)], &layers).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(every(&layers), before);
    }
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "x.safetensors", b"cut short");
    let mut loras = Loras::new(Some(LoraDir::new(root.path().to_owned())));
    let error = loras.apply(&[named("x", 1.0)], &layers).unwrap_err();
    assert!(matches!(error, LoraError::File { .. }), "{error}");
    // Whoever names a LoRA need not know where the worker keeps it.
    let folder = root.path().display().to_string();
    assert!(!error.to_string().contains(&folder), "{error}");
}
