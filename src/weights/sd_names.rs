//! Stable Diffusion's original (LDM) names for the UNet's and the VAE's tensors, seen as diffusers' names.
//!
//! The map is built by walking the blocks that a file has, so it goes for every depth and width. It is the inverse of
//! diffusers' `convert_ldm_unet_checkpoint` and `convert_ldm_vae_checkpoint`.

use std::collections::HashMap;

use super::{Layout, Piece, TensorSource};

/// Names of a part of `inner` below `prefix`, without it.
fn below<'a>(names: &'a [String], prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    names
        .iter()
        .filter_map(move |name| Some((name.strip_prefix(prefix)?, name.as_str())))
}

/// From diffusers' names to the places in `inner`, whose UNet has LDM names below `prefix`.
pub(super) fn ldm_unet(inner: &dyn TensorSource, prefix: &str) -> HashMap<String, Piece> {
    let names = inner.names();
    let has = |name: &str| inner.describe(&format!("{prefix}{name}")).is_some();
    let mut blocks = HashMap::new();
    let (mut level, mut layer) = (0, 0);
    for i in 1.. {
        let at = format!("input_blocks.{i}");
        if has(&format!("{at}.0.op.weight")) {
            blocks.insert(format!("{at}.0.op"), format!("down_blocks.{level}.downsamplers.0.conv"));
            (level, layer) = (level + 1, 0);
        } else if has(&format!("{at}.0.in_layers.0.weight")) {
            blocks.insert(format!("{at}.0"), format!("down_blocks.{level}.resnets.{layer}"));
            blocks.insert(format!("{at}.1"), format!("down_blocks.{level}.attentions.{layer}"));
            layer += 1;
        } else {
            break;
        }
    }
    for (ours, theirs) in [("resnets.0", "0"), ("attentions.0", "1"), ("resnets.1", "2")] {
        blocks.insert(format!("middle_block.{theirs}"), format!("mid_block.{ours}"));
    }
    (level, layer) = (0, 0);
    for i in 0.. {
        let at = format!("output_blocks.{i}");
        if !has(&format!("{at}.0.in_layers.0.weight")) {
            break;
        }
        blocks.insert(format!("{at}.0"), format!("up_blocks.{level}.resnets.{layer}"));
        let attention = has(&format!("{at}.1.norm.weight"));
        if attention {
            blocks.insert(format!("{at}.1"), format!("up_blocks.{level}.attentions.{layer}"));
        }
        layer += 1;
        let up = if attention {
            format!("{at}.2")
        } else {
            format!("{at}.1")
        };
        if has(&format!("{up}.conv.weight")) {
            blocks.insert(up, format!("up_blocks.{level}.upsamplers.0"));
            (level, layer) = (level + 1, 0);
        }
    }
    below(&names, prefix)
        .filter_map(|(own, name)| Some((unet_name(own, &blocks)?, Piece::whole(name))))
        .collect()
}

fn unet_name(own: &str, blocks: &HashMap<String, String>) -> Option<String> {
    const OUTSIDE: &[(&str, &str)] = &[
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
    ];
    const RESNET: &[(&str, &str)] = &[
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("emb_layers.1.", "time_emb_proj."),
        ("skip_connection.", "conv_shortcut."),
    ];
    let renamed = |own: &str, table: &[(&str, &str)]| {
        table
            .iter()
            .find_map(|(theirs, ours)| Some(format!("{ours}{}", own.strip_prefix(theirs)?)))
    };
    if let Some(name) = renamed(own, OUTSIDE) {
        return Some(name);
    }
    // `input_blocks.3.0.op.weight`, `input_blocks.1.0.in_layers.0.weight`, `middle_block.1.proj_in.weight`
    let mut ends: Vec<usize> = own.match_indices('.').map(|(at, _)| at).take(4).collect();
    ends.reverse();
    let (block, rest) = ends
        .iter()
        .find_map(|&end| Some((blocks.get(&own[..end])?, &own[end + 1..])))?;
    let inside = renamed(rest, RESNET).unwrap_or_else(|| rest.to_owned());
    Some(format!("{block}.{inside}"))
}

/// From diffusers' names to the places in `inner`, whose VAE has LDM names below `prefix`.
pub(super) fn ldm_vae(inner: &dyn TensorSource, prefix: &str) -> HashMap<String, Piece> {
    let names = inner.names();
    let ups = (0..)
        .take_while(|i| {
            inner
                .describe(&format!("{prefix}decoder.up.{i}.block.0.norm1.weight"))
                .is_some()
        })
        .count();
    below(&names, prefix)
        .filter_map(|(own, name)| vae_place(own, name, ups))
        .collect()
}

fn vae_place(own: &str, name: &str, ups: usize) -> Option<(String, Piece)> {
    let parts: Vec<&str> = own.split('.').collect();
    let resnet =
        |at: String, rest: &[&str]| format!("{at}.{}", rest.join(".").replace("nin_shortcut", "conv_shortcut"));
    let whole = |ours: String| Some((ours, Piece::whole(name)));
    match parts.as_slice() {
        ["quant_conv" | "post_quant_conv", _] => whole(own.to_owned()),
        [side @ ("encoder" | "decoder"), rest @ ..] => match rest {
            ["conv_in" | "conv_out", _] => whole(own.to_owned()),
            ["norm_out", kind] => whole(format!("{side}.conv_norm_out.{kind}")),
            ["down", level, "block", layer, rest @ ..] => {
                whole(resnet(format!("{side}.down_blocks.{level}.resnets.{layer}"), rest))
            }
            ["down", level, "downsample", "conv", kind] => {
                whole(format!("{side}.down_blocks.{level}.downsamplers.0.conv.{kind}"))
            }
            ["up", level, rest @ ..] => {
                let level = ups.checked_sub(level.parse::<usize>().ok()? + 1)?;
                match rest {
                    ["block", layer, rest @ ..] => {
                        whole(resnet(format!("{side}.up_blocks.{level}.resnets.{layer}"), rest))
                    }
                    ["upsample", "conv", kind] => whole(format!("{side}.up_blocks.{level}.upsamplers.0.conv.{kind}")),
                    _ => None,
                }
            }
            ["mid", "block_1", rest @ ..] => whole(resnet(format!("{side}.mid_block.resnets.0"), rest)),
            ["mid", "block_2", rest @ ..] => whole(resnet(format!("{side}.mid_block.resnets.1"), rest)),
            ["mid", "attn_1", layer, kind] => {
                let layer = vae_attention(layer)?;
                let piece = Piece::whole(name).with(Layout::Squeezed);
                Some((format!("{side}.mid_block.attentions.0.{layer}.{kind}"), piece))
            }
            _ => None,
        },
        _ => None,
    }
}

/// A layer of the VAE's attention by any of its names: LDM's, or those of diffusers before 0.16.
fn vae_attention(layer: &str) -> Option<&'static str> {
    Some(match layer {
        "norm" | "group_norm" => "group_norm",
        "q" | "query" | "to_q" => "to_q",
        "k" | "key" | "to_k" => "to_k",
        "v" | "value" | "to_v" => "to_v",
        "proj_out" | "proj_attn" => "to_out.0",
        _ => return None,
    })
}

/// Today's names for a VAE in diffusers' layout; files from before diffusers 0.16 (Stable Diffusion 1.5's among them)
/// call its attention's layers `query`, `key`, `value` and `proj_attn`.
pub(super) fn todays_vae(inner: &dyn TensorSource) -> HashMap<String, Piece> {
    let place = |name: String| {
        let parts: Vec<&str> = name.split('.').collect();
        let ours = match parts.as_slice() {
            [
                side,
                "mid_block",
                "attentions",
                at,
                layer @ ("query" | "key" | "value" | "proj_attn"),
                kind,
            ] => {
                format!(
                    "{side}.mid_block.attentions.{at}.{}.{kind}",
                    vae_attention(layer).unwrap_or(layer)
                )
            }
            _ => name.clone(),
        };
        let layout = if ours.contains(".attentions.") {
            Layout::Squeezed
        } else {
            Layout::Same
        };
        (ours, Piece::whole(name).with(layout))
    };
    inner.names().into_iter().map(place).collect()
}

/// Prefix of a VAE with LDM names in `inner`, if it has one.
pub(super) fn ldm_vae_prefix(inner: &dyn TensorSource) -> Option<&'static str> {
    let has = |prefix: &&str| {
        inner
            .describe(&format!("{prefix}decoder.mid.block_1.norm1.weight"))
            .is_some()
    };
    ["first_stage_model.", "vae.", ""].into_iter().find(has)
}
