//! The names that checkpoints have for CLIP's tensors, seen as transformers' names.

use std::collections::HashMap;

use super::{Layout, Piece, TensorSource};

/// From transformers' names to the places in `inner`, which has them below `prefix` (with or without `text_model.`).
pub(super) fn hf_clip(inner: &dyn TensorSource, prefix: &str) -> HashMap<String, Piece> {
    inner
        .names()
        .into_iter()
        .filter_map(|name| {
            let own = name.strip_prefix(prefix)?;
            if own == "text_model.text_projection" {
                // stable-diffusion.cpp leaves it as OpenCLIP has it.
                let turned = Piece::whole(name).with(Layout::Transposed);
                return Some(("text_projection.weight".to_owned(), turned));
            }
            let ours = match own.split_once('.')? {
                ("text_model" | "text_projection", _) => own.to_owned(),
                ("embeddings" | "encoder" | "final_layer_norm", _) => format!("text_model.{own}"),
                _ => return None,
            };
            Some((ours, Piece::whole(name)))
        })
        .collect()
}

/// From transformers' names to the places in `inner`, whose OpenCLIP text tower lies below `prefix`.
///
/// Queries, keys and values are one tensor there, and the last projection is stored the other way round.
pub(super) fn open_clip(inner: &dyn TensorSource, prefix: &str) -> HashMap<String, Piece> {
    let mut pieces = HashMap::new();
    for name in inner.names() {
        let Some(own) = name.strip_prefix(prefix) else { continue };
        let rows = inner
            .describe(&name)
            .and_then(|(shape, _)| shape.first().copied())
            .unwrap_or(0);
        pieces.extend(open_clip_places(own, &name, rows));
    }
    pieces
}

fn open_clip_places(own: &str, name: &str, rows: usize) -> Vec<(String, Piece)> {
    let whole = |ours: String| vec![(ours, Piece::whole(name))];
    match own.split('.').collect::<Vec<_>>().as_slice() {
        ["positional_embedding"] => whole("text_model.embeddings.position_embedding.weight".to_owned()),
        ["token_embedding", "weight"] => whole("text_model.embeddings.token_embedding.weight".to_owned()),
        ["ln_final", kind] => whole(format!("text_model.final_layer_norm.{kind}")),
        ["text_projection"] => {
            vec![(
                "text_projection.weight".to_owned(),
                Piece::whole(name).with(Layout::Transposed),
            )]
        }
        ["text_projection", "weight"] => whole(own.to_owned()),
        ["transformer", "resblocks", layer, rest @ ..] => {
            let at = format!("text_model.encoder.layers.{layer}");
            match rest {
                ["ln_1", kind] => whole(format!("{at}.layer_norm1.{kind}")),
                ["ln_2", kind] => whole(format!("{at}.layer_norm2.{kind}")),
                ["mlp", "c_fc", kind] => whole(format!("{at}.mlp.fc1.{kind}")),
                ["mlp", "c_proj", kind] => whole(format!("{at}.mlp.fc2.{kind}")),
                ["attn", "out_proj", kind] => whole(format!("{at}.self_attn.out_proj.{kind}")),
                ["attn", fused @ ("in_proj_weight" | "in_proj_bias")] => {
                    let kind = if *fused == "in_proj_weight" { "weight" } else { "bias" };
                    let third = rows / 3;
                    ["q_proj", "k_proj", "v_proj"]
                        .iter()
                        .enumerate()
                        .map(|(i, layer)| {
                            let piece = Piece::rows(name, i * third..(i + 1) * third);
                            (format!("{at}.self_attn.{layer}.{kind}"), piece)
                        })
                        .collect()
                }
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fused_projection_is_taken_apart() {
        let found = open_clip_places("transformer.resblocks.3.attn.in_proj_bias", "x", 30);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let at = "text_model.encoder.layers.3.self_attn";
        assert_eq!(names, ["q_proj", "k_proj", "v_proj"].map(|n| format!("{at}.{n}.bias")));
        assert_eq!(found[1].1, Piece::rows("x", 10..20));
        assert!(open_clip_places("logit_scale", "x", 1).is_empty());
    }
}
