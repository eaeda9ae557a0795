//! Training's running averages (EMA) in checkpoints of Stable Diffusion, where they are all that a file has of the UNet.
//!
//! LDM keeps them beside the plain weights as `model_ema.diffusion_modelinput_blocks10in_layers0weight`: the plain names
//! without their dots. A file with both is read by its plain weights, as the web UIs do.

use std::collections::HashMap;
use std::rc::Rc;

use super::{Mapped, Piece, TensorSource};

const EMA: &str = "model_ema.diffusion_model";
const PLAIN: &str = "model.diffusion_model.";

/// Words of a UNet's names, those that begin like another one before it.
const WORDS: &[&str] = &[
    "input_blocks",
    "middle_block",
    "output_blocks",
    "time_embed",
    "label_emb",
    "transformer_blocks",
    "in_layers",
    "out_layers",
    "emb_layers",
    "skip_connection",
    "proj_in",
    "proj_out",
    "proj",
    "attn1",
    "attn2",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "norm1",
    "norm2",
    "norm3",
    "norm",
    "conv",
    "net",
    "out",
    "ff",
    "op",
    "weight",
    "bias",
];

/// Shows the averages of `file` under the plain names, if it has no plain ones.
pub(super) fn with_averages(file: Rc<dyn TensorSource>) -> Rc<dyn TensorSource> {
    let names = file.names();
    let averages = names.iter().any(|name| name.starts_with(EMA));
    if !averages || names.iter().any(|name| name.starts_with(PLAIN)) {
        return file;
    }
    let pieces: HashMap<String, Piece> = names
        .into_iter()
        .filter_map(|name| {
            let seen = match name.strip_prefix(EMA) {
                Some(flat) => format!("{PLAIN}{}", dotted(flat)?),
                None => name.clone(),
            };
            Some((seen, Piece::whole(name)))
        })
        .collect();
    Rc::new(Mapped::new(file, pieces))
}

/// A UNet's name with its dots back; `None` if it is none. Only the blocks of the way in and out and the label's embedding have
/// two numbers after each other, the second of one digit.
fn dotted(flat: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = flat;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let taken = if digits == 0 {
            WORDS.iter().find(|word| rest.starts_with(**word))?.len()
        } else {
            match parts.last() {
                Some(&("input_blocks" | "output_blocks" | "label_emb")) if digits > 1 => digits - 1,
                _ => digits,
            }
        };
        parts.push(&rest[..taken]);
        rest = &rest[taken..];
    }
    Some(parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_name_gets_its_dots_back() {
        for name in [
            "input_blocks.0.0.weight",
            "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight",
            "input_blocks.11.0.in_layers.0.weight",
            "input_blocks.3.0.op.bias",
            "input_blocks.7.1.transformer_blocks.10.ff.net.0.proj.weight",
            "middle_block.1.transformer_blocks.0.norm3.bias",
            "middle_block.1.proj_in.weight",
            "output_blocks.2.1.conv.weight",
            "output_blocks.10.0.skip_connection.weight",
            "output_blocks.5.2.conv.bias",
            "time_embed.2.weight",
            "label_emb.0.0.weight",
            "out.2.bias",
        ] {
            assert_eq!(dotted(&name.replace('.', "")).as_deref(), Some(name));
        }
        assert_eq!(dotted("something"), None);
    }
}
