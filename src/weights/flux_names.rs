//! Black Forest Labs' own names for FLUX's tensors, seen as diffusers' names.
//!
//! Original files, GGUF files and most fine-tunes call the transformer's tensors `double_blocks.0.img_attn.qkv.weight` and
//! so on. Two things differ beside the names: queries, keys and values are one tensor there (and in single blocks the
//! feed-forward's first layer too), and the last modulation has its shift before its scale. Both are answered by taking
//! rows, which goes for quantised tensors as well: blocks never reach over the end of a row.

use std::collections::HashMap;

use super::{Layout, Piece, TensorSource};

/// Whether `inner` has a FLUX transformer under original names below `prefix`.
pub fn has_original_flux(inner: &dyn TensorSource, prefix: &str) -> bool {
    let has = |name: &str| inner.describe(&format!("{prefix}{name}")).is_some();
    has("double_blocks.0.img_attn.qkv.weight") && has("img_in.weight")
}

/// From diffusers' names to the places in `inner`, whose transformer has original names below `prefix`
/// (`model.diffusion_model.`, or empty). Names that no FLUX transformer has are left out.
pub fn original_flux(inner: &dyn TensorSource, prefix: &str) -> HashMap<String, Piece> {
    let mut pieces = HashMap::new();
    for name in inner.names() {
        let Some(rows) = inner.describe(&name).and_then(|(shape, _)| shape.first().copied()) else {
            continue;
        };
        let Some(own) = name.strip_prefix(prefix) else { continue };
        for (ours, piece) in places(own, &name, rows) {
            pieces.insert(ours, piece);
        }
    }
    pieces
}

/// The layers, by diffusers' names, that the original layer `own` (`double_blocks.0.img_attn.qkv`) stands for, in the
/// order of its rows; and whether the halves of its rows have changed places.
pub(super) fn parts_of_layer(own: &str) -> (Vec<String>, bool) {
    // xlabs' LoRAs change a single block's attention by layers that the original has only as parts of others.
    if let Some((block, layer @ ("qkv" | "proj"))) =
        own.strip_prefix("single_blocks.").and_then(|own| own.split_once('.'))
    {
        let layers: &[&str] = if layer == "qkv" {
            &["attn.to_q", "attn.to_k", "attn.to_v"]
        } else {
            &["proj_out"]
        };
        let names = layers
            .iter()
            .map(|layer| format!("single_transformer_blocks.{block}.{layer}"));
        return (names.collect(), false);
    }
    // Any number of rows that thirds and sevenths divide gives the names in their order.
    let found = places(&format!("{own}.weight"), "", 21);
    let swapped = found.iter().any(|(_, piece)| piece.layout == Layout::HalvesSwapped);
    let names = found
        .into_iter()
        .filter_map(|(ours, _)| Some(ours.strip_suffix(".weight")?.to_owned()));
    (names.collect(), swapped)
}

/// What becomes of the original tensor `own` (called `name` in the file) of so many rows.
fn places(own: &str, name: &str, rows: usize) -> Vec<(String, Piece)> {
    let parts: Vec<&str> = own.split('.').collect();
    let whole = |ours: String| vec![(ours, Piece::whole(name))];
    match parts.as_slice() {
        ["double_blocks", block, rest @ ..] => double(&format!("transformer_blocks.{block}"), rest, name, rows),
        ["single_blocks", block, rest @ ..] => single(&format!("single_transformer_blocks.{block}"), rest, name, rows),
        ["final_layer", "adaLN_modulation", "1", kind] => {
            vec![(
                format!("norm_out.linear.{kind}"),
                Piece::whole(name).with(Layout::HalvesSwapped),
            )]
        }
        ["final_layer", "linear", kind] => whole(format!("proj_out.{kind}")),
        ["img_in", kind] => whole(format!("x_embedder.{kind}")),
        ["txt_in", kind] => whole(format!("context_embedder.{kind}")),
        [
            part @ ("time_in" | "vector_in" | "guidance_in"),
            layer @ ("in_layer" | "out_layer"),
            kind,
        ] => {
            let embedder = match *part {
                "time_in" => "timestep_embedder",
                "vector_in" => "text_embedder",
                _ => "guidance_embedder",
            };
            let layer = if *layer == "in_layer" { "linear_1" } else { "linear_2" };
            whole(format!("time_text_embed.{embedder}.{layer}.{kind}"))
        }
        _ => Vec::new(),
    }
}

fn double(block: &str, rest: &[&str], name: &str, rows: usize) -> Vec<(String, Piece)> {
    let whole = |ours: String| vec![(format!("{block}.{ours}"), Piece::whole(name))];
    let image = |rest: &&str| rest.starts_with("img_");
    match rest {
        [side @ ("img_mod" | "txt_mod"), "lin", kind] => {
            let norm = if image(side) { "norm1" } else { "norm1_context" };
            whole(format!("{norm}.linear.{kind}"))
        }
        [side @ ("img_attn" | "txt_attn"), "qkv", kind] => {
            let names = if image(side) {
                ["to_q", "to_k", "to_v"]
            } else {
                ["add_q_proj", "add_k_proj", "add_v_proj"]
            };
            thirds(names.map(|n| format!("{block}.attn.{n}.{kind}")), name, rows / 3)
        }
        [
            side @ ("img_attn" | "txt_attn"),
            "norm",
            which @ ("query_norm" | "key_norm"),
            "scale" | "weight",
        ] => {
            let letter = if *which == "query_norm" { 'q' } else { 'k' };
            let added = if image(side) { "" } else { "added_" };
            whole(format!("attn.norm_{added}{letter}.weight"))
        }
        [side @ ("img_attn" | "txt_attn"), "proj", kind] => {
            let out = if image(side) { "to_out.0" } else { "to_add_out" };
            whole(format!("attn.{out}.{kind}"))
        }
        [side @ ("img_mlp" | "txt_mlp"), layer @ ("0" | "2"), kind] => {
            let feed = if image(side) { "ff" } else { "ff_context" };
            let layer = if *layer == "0" { "0.proj" } else { "2" };
            whole(format!("{feed}.net.{layer}.{kind}"))
        }
        _ => Vec::new(),
    }
}

fn single(block: &str, rest: &[&str], name: &str, rows: usize) -> Vec<(String, Piece)> {
    let whole = |ours: String| vec![(format!("{block}.{ours}"), Piece::whole(name))];
    match rest {
        ["modulation", "lin", kind] => whole(format!("norm.linear.{kind}")),
        // Three parts of the stream's width and the feed-forward's four times that.
        ["linear1", kind] => {
            let width = rows / 7;
            let names = ["to_q", "to_k", "to_v"].map(|n| format!("{block}.attn.{n}.{kind}"));
            let mut pieces = thirds(names, name, width);
            pieces.push((format!("{block}.proj_mlp.{kind}"), Piece::rows(name, 3 * width..rows)));
            pieces
        }
        ["linear2", kind] => whole(format!("proj_out.{kind}")),
        ["norm", "query_norm", "scale" | "weight"] => whole("attn.norm_q.weight".to_owned()),
        ["norm", "key_norm", "scale" | "weight"] => whole("attn.norm_k.weight".to_owned()),
        _ => Vec::new(),
    }
}

fn thirds(names: [String; 3], name: &str, width: usize) -> Vec<(String, Piece)> {
    names
        .into_iter()
        .enumerate()
        .map(|(i, ours)| (ours, Piece::rows(name, i * width..(i + 1) * width)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fused_projection_is_taken_apart() {
        let found = places(
            "double_blocks.3.txt_attn.qkv.bias",
            "m.double_blocks.3.txt_attn.qkv.bias",
            96,
        );
        let expected = |ours: &str, rows| {
            (
                format!("transformer_blocks.3.attn.{ours}.bias"),
                Piece::rows("m.double_blocks.3.txt_attn.qkv.bias", rows),
            )
        };
        assert_eq!(
            found,
            [
                expected("add_q_proj", 0..32),
                expected("add_k_proj", 32..64),
                expected("add_v_proj", 64..96)
            ]
        );
        let found = places("single_blocks.0.linear1.weight", "x", 7 * 32);
        assert_eq!(
            found[3],
            (
                "single_transformer_blocks.0.proj_mlp.weight".to_owned(),
                Piece::rows("x", 96..224)
            )
        );
    }

    #[test]
    fn shift_and_scale_change_places_at_the_end() {
        let found = places("final_layer.adaLN_modulation.1.weight", "x", 64);
        assert_eq!(
            found,
            [(
                "norm_out.linear.weight".to_owned(),
                Piece::whole("x").with(Layout::HalvesSwapped)
            )]
        );
        assert!(places("final_layer.unknown", "x", 64).is_empty());
    }
}
