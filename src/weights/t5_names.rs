//! llama.cpp's names for a T5 encoder's tensors, seen as transformers' names.

use std::collections::HashMap;

use super::{Piece, TensorSource};

/// From transformers' names to the places in `inner`, whose tensors have llama.cpp's names (`enc.blk.0.attn_q.weight`).
/// Empty if it has none of them; the decoder's tensors are left out.
pub fn llama_cpp_t5(inner: &dyn TensorSource) -> HashMap<String, Piece> {
    inner
        .names()
        .into_iter()
        .filter_map(|name| Some((place(&name)?, Piece::whole(name))))
        .collect()
}

fn place(name: &str) -> Option<String> {
    match name.split('.').collect::<Vec<_>>().as_slice() {
        ["token_embd", "weight"] => Some("shared.weight".to_owned()),
        ["enc", "output_norm", "weight"] => Some("encoder.final_layer_norm.weight".to_owned()),
        ["enc", "blk", block, layer, "weight"] => {
            let layer = match *layer {
                "attn_q" => "0.SelfAttention.q",
                "attn_k" => "0.SelfAttention.k",
                "attn_v" => "0.SelfAttention.v",
                "attn_o" => "0.SelfAttention.o",
                "attn_rel_b" => "0.SelfAttention.relative_attention_bias",
                "attn_norm" => "0.layer_norm",
                "ffn_gate" => "1.DenseReluDense.wi_0",
                "ffn_up" => "1.DenseReluDense.wi_1",
                "ffn_down" => "1.DenseReluDense.wo",
                "ffn_norm" => "1.layer_norm",
                _ => return None,
            };
            Some(format!("encoder.block.{block}.layer.{layer}.weight"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_the_layer_with_the_activation() {
        let feed = "encoder.block.7.layer.1.DenseReluDense";
        assert_eq!(place("enc.blk.7.ffn_gate.weight"), Some(format!("{feed}.wi_0.weight")));
        assert_eq!(place("enc.blk.7.ffn_down.weight"), Some(format!("{feed}.wo.weight")));
        assert_eq!(place("dec.blk.7.ffn_down.weight"), None);
        assert_eq!(place("token_embd.weight").as_deref(), Some("shared.weight"));
    }
}
