//! LoRAs come and go between jobs, and the original weights come back bit by bit.

use candle_core::DType;
use sd_worker::domain::request::LoraRef;
use sd_worker::weights::lora::Loras;

use crate::support::f32s;

use super::support::{every, folder_with, golden, held, made, named, tiny};

#[test]
fn several_at_once_add_up_and_a_text_encoder_is_reported() {
    let layers = tiny(DType::F32);
    let before = every(&layers);
    let mut loras = golden();
    let alone = |loras: &mut Loras, wanted: &[LoraRef]| {
        loras.apply(wanted, &layers).unwrap();
        every(&layers)
    };
    let one = alone(&mut loras, &[named("lora-lora", 0.7)]);
    let other = alone(&mut loras, &[named("lora-loha", -0.3)]);
    let both = alone(&mut loras, &[named("lora-lora", 0.7), named("lora-loha", -0.3)]);
    for (layer, numbers) in &both {
        for (i, number) in numbers.iter().enumerate() {
            let expected = one[layer][i] + other[layer][i] - before[layer][i];
            assert!((number - expected).abs() < 1e-5, "{layer}");
        }
    }
    assert!(loras.apply(&[named("lora-lora", 1.0)], &layers).unwrap().touches_text);
    let applied = loras.apply(&[named("lora-loha", 1.0)], &layers).unwrap();
    assert!(applied.touches_text, "the text encoder got its own weights back");
    assert!(!loras.apply(&[named("lora-loha", 0.5)], &layers).unwrap().touches_text);
}

#[test]
fn the_same_loras_again_cost_nothing_and_none_gives_the_original_back() {
    let layers = tiny(DType::BF16);
    let before = every(&layers);
    let mut loras = golden();
    assert!(!loras.apply(&[], &layers).unwrap().changed);
    assert!(loras.apply(&[named("lora-lora", 1.0)], &layers).unwrap().changed);
    assert!(!loras.apply(&[named("lora-lora", 1.0)], &layers).unwrap().changed);
    assert!(loras.apply(&[named("lora-lora", 0.9)], &layers).unwrap().changed);
    let off = loras.apply(&[], &layers).unwrap();
    assert!(off.changed && off.touches_text);
    assert_eq!(every(&layers), before);
}

#[test]
fn a_thousand_swaps_leave_the_same_bits() {
    let shapes: &[(&str, &[usize])] = &[("mid_block.attentions.0.proj_in", &[16, 8])];
    let layers = made(shapes, false);
    let slot = layers.denoiser.get(shapes[0].0).unwrap();
    let before = held(&slot);
    let at = "lora_unet_mid_block_attentions_0_proj_in";
    let (_root, mut loras) = folder_with(&[
        f32s(&format!("{at}.lora_down.weight"), &[2, 8], &[0.1; 16]),
        f32s(&format!("{at}.lora_up.weight"), &[16, 2], &[0.2; 32]),
    ]);
    for round in 0..1000 {
        let strength = (round % 17) as f32 * 0.1 - 0.75;
        loras.apply(&[named("x", strength)], &layers).unwrap();
        if round % 100 == 0 {
            assert_ne!(held(&slot), before);
            loras.apply(&[], &layers).unwrap();
        }
    }
    loras.apply(&[], &layers).unwrap();
    assert!(held(&slot).iter().zip(&before).all(|(a, b)| a.to_bits() == b.to_bits()));
}
