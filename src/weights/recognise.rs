//! What a single file holds, from the names of its tensors.

use super::TensorSource;
use super::flux_names::has_original_flux;
use crate::domain::model::Family;

/// A denoiser found in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Denoiser {
    /// Its family.
    pub family: Family,
    /// What its tensors' names begin with.
    pub prefix: &'static str,
    /// Whose names they are.
    pub naming: Naming,
}

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// Those of the model's makers.
    Original,
    /// Diffusers'.
    Diffusers,
}

const PREFIXES: &[&str] = &[
    "model.diffusion_model.",
    "",
    "transformer.",
    "unet.",
    "diffusion_model.",
];

/// Parts of names by which models of other kinds are known, with what to say of them.
const OTHERS: &[(&str, &str)] = &[
    (
        "lora_unet_",
        "it is a LoRA; put it under --lora-dir and name it in a request",
    ),
    (
        "lora_down.weight",
        "it is a LoRA; put it under --lora-dir and name it in a request",
    ),
    (
        "lora_A.weight",
        "it is a LoRA; put it under --lora-dir and name it in a request",
    ),
    (
        "hada_w1_a",
        "it is a LoRA (LoHa); put it under --lora-dir and name it in a request",
    ),
    (
        "lokr_w1",
        "it is a LoRA (LoKr); put it under --lora-dir and name it in a request",
    ),
    (
        "distilled_guidance_layer.",
        "it is a Chroma model, which is not supported",
    ),
    (
        "double_stream_modulation_img.",
        "it is a FLUX.2 model, which is not supported",
    ),
    (
        "joint_blocks.",
        "it is a Stable Diffusion 3 model, which is not supported",
    ),
    ("control_model.", "it is a ControlNet, which is not supported"),
    (
        "controlnet_cond_embedding.",
        "it is a ControlNet, which is not supported",
    ),
    ("motion_modules.", "it is an AnimateDiff module, which is not supported"),
    (
        "cap_embedder.",
        "it is a Lumina or Z-Image model, which is not supported",
    ),
    ("emb_params", "it is a textual inversion, which is not supported"),
    (
        "enc.blk.0.attn_q.weight",
        "it is a T5 text encoder; put it beside the FLUX model that uses it",
    ),
    (
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "it is a T5 text encoder; put it beside the FLUX model that uses it",
    ),
    ("decoder.mid.block_1.norm1.weight", "it is a VAE; name it with --vae"),
    (
        "decoder.mid_block.resnets.0.norm1.weight",
        "it is a VAE; name it with --vae",
    ),
    (
        "text_model.encoder.layers.0.",
        "it is a CLIP text encoder; put it beside the model that uses it",
    ),
    (
        "down_blocks.0.resnets.0.conv1.weight",
        "it is a part of a UNet of a diffusers folder; name the folder instead",
    ),
];

/// Finds the denoiser of a file.
///
/// # Errors
/// It fits no family; the text says what was found.
pub(super) fn recognise(source: &dyn TensorSource) -> Result<Denoiser, String> {
    let mut names = source.names();
    for &prefix in PREFIXES {
        let any = |part: &str| {
            let own = |name: &String| name.strip_prefix(prefix).is_some_and(|own| own.starts_with(part));
            names.iter().any(own)
        };
        let shape = |name: &str| source.describe(&format!("{prefix}{name}")).map(|(shape, _)| shape);
        let has = |name: &str| shape(name).is_some();
        let original = has_original_flux(source, prefix) && !has("distilled_guidance_layer.in_proj.weight");
        if original || (has("transformer_blocks.0.attn.add_q_proj.weight") && has("x_embedder.weight")) {
            let dev = any("guidance_in.") || any("time_text_embed.guidance_embedder.");
            let family = if dev { Family::FluxDev } else { Family::FluxSchnell };
            let naming = if original { Naming::Original } else { Naming::Diffusers };
            return Ok(Denoiser { family, prefix, naming });
        }
        let diffusers = [
            "down_blocks.0.resnets.0.conv1.weight",
            "conv_in.weight",
            "conv_out.weight",
        ]
        .into_iter()
        .all(has);
        if diffusers || any("input_blocks.") {
            let naming = if diffusers { Naming::Diffusers } else { Naming::Original };
            let family = stable_diffusion(source, prefix, naming)?;
            return Ok(Denoiser { family, prefix, naming });
        }
    }
    names.sort_unstable();
    if let Some((_, text)) = OTHERS
        .iter()
        .find(|(part, _)| names.iter().any(|name| name.contains(part)))
    {
        return Err((*text).to_owned());
    }
    let some: Vec<&str> = names
        .iter()
        .step_by((names.len() / 3).max(1))
        .take(3)
        .map(String::as_str)
        .collect();
    Err(match some.as_slice() {
        [] => "it has no tensors".to_owned(),
        some => format!(
            "it has {} tensors such as `{}`, which fit no family",
            names.len(),
            some.join("`, `")
        ),
    })
}

fn stable_diffusion(source: &dyn TensorSource, prefix: &str, naming: Naming) -> Result<Family, String> {
    let (blocks, added) = match naming {
        Naming::Original => ("input_blocks.", "label_emb.0.0.weight"),
        Naming::Diffusers => ("down_blocks.", "add_embedding.linear_1.weight"),
    };
    for (marker, model) in [("edm_mean", "Playground v2.5"), ("edm_vpred.sigma_max", "CosXL")] {
        if source.describe(marker).is_some() {
            return Err(format!("it is an EDM model such as {model}, which is not supported"));
        }
    }
    let starts = |start: &str| source.names().iter().any(|name| name.starts_with(start));
    let context = source.names().iter().find_map(|name| {
        let own = name.strip_prefix(prefix)?;
        let fits = own.starts_with(blocks) && own.ends_with(".transformer_blocks.0.attn2.to_k.weight");
        fits.then(|| source.describe(name))
            .flatten()
            .and_then(|(shape, _)| shape.get(1).copied())
    });
    if source.describe(&format!("{prefix}{added}")).is_some() {
        return match context {
            Some(1280) => Err("it is the SDXL refiner, which is not supported; use the base model".to_owned()),
            Some(1024) => Err("it is an unCLIP or upscaling model, which is not supported".to_owned()),
            _ => Ok(Family::Sdxl),
        };
    }
    match context {
        Some(768) => Ok(Family::Sd1),
        Some(1024) => Ok(Family::Sd2),
        Some(_) if starts("cond_stage_model.model.") => Ok(Family::Sd2),
        Some(_) if starts("cond_stage_model.transformer.") => Ok(Family::Sd1),
        Some(width) => Err(format!(
            "it has a UNet whose text is {width} numbers wide, which fits no family"
        )),
        None => Err("it has a UNet without cross attention, which fits no family".to_owned()),
    }
}

/// What a Stable Diffusion model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prediction {
    /// Velocity instead of noise.
    pub velocity: bool,
    /// Trained down to a signal of zero.
    pub zero_snr: bool,
}

/// What the model predicts: from marker tensors, the metadata's text, or for Stable Diffusion 2 the spread of one bias,
/// by which ComfyUI tells the 768 model from the base model.
pub(super) fn prediction(source: &dyn TensorSource, denoiser: &Denoiser, said: Option<&str>) -> Prediction {
    let has = |name: &str| source.describe(name).is_some();
    let zero_snr = has("ztsnr");
    let said_v = said
        .map(str::to_ascii_lowercase)
        .is_some_and(|text| text == "v" || text.starts_with("v_") || text == "v-prediction");
    let velocity = has("v_pred") || said_v || wide_bias(source, denoiser);
    Prediction {
        velocity,
        zero_snr: zero_snr && velocity,
    }
}

fn wide_bias(source: &dyn TensorSource, denoiser: &Denoiser) -> bool {
    let at = |name: &str| format!("{}{name}", denoiser.prefix);
    let plain = source
        .describe(&at("input_blocks.0.0.weight"))
        .is_some_and(|(shape, _)| shape.get(1) == Some(&4));
    if denoiser.family != Family::Sd2 || !plain {
        return false;
    }
    let name = at("output_blocks.11.1.transformer_blocks.0.norm1.bias");
    let numbers = source.read(&name).and_then(|raw| raw.to_f32(&name)).unwrap_or_default();
    let count = numbers.len().max(1) as f32;
    let mean = numbers.iter().sum::<f32>() / count;
    let spread = (numbers.iter().map(|n| (n - mean).powi(2)).sum::<f32>() / count).sqrt();
    spread > 0.09
}
