//! The names of tensors in LoRA files: which layer, and which part of its change.

/// A part of a layer's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Param {
    /// `(rank, in)`: LoRA's A.
    Down,
    /// `(out, rank)`: LoRA's B.
    Up,
    /// `(rank, rank, kh, kw)`: between the two, of a convolution.
    Mid,
    /// A number that the change is scaled with, over the rank.
    Alpha,
    /// Length of each row of the changed weight: DoRA as PEFT has it.
    Magnitude,
    /// Length of each row or column of the changed weight: DoRA as LyCORIS has it.
    DoraScale,
    /// A number that the change is multiplied with.
    Scalar,
    /// The whole change.
    Diff,
    /// LoHa.
    HadaW1A,
    /// LoHa.
    HadaW1B,
    /// LoHa.
    HadaW2A,
    /// LoHa.
    HadaW2B,
    /// LoHa of a convolution.
    HadaT1,
    /// LoHa of a convolution.
    HadaT2,
    /// LoKr.
    LokrW1,
    /// LoKr.
    LokrW1A,
    /// LoKr.
    LokrW1B,
    /// LoKr.
    LokrW2,
    /// LoKr.
    LokrW2A,
    /// LoKr.
    LokrW2B,
    /// LoKr of a convolution.
    LokrT2,
}

const ENDINGS: &[(&str, Param)] = &[
    (".lora_down.weight", Param::Down),
    (".lora_up.weight", Param::Up),
    (".lora_mid.weight", Param::Mid),
    (".lora_A.weight", Param::Down),
    (".lora_B.weight", Param::Up),
    (".lora_A.default.weight", Param::Down),
    (".lora_B.default.weight", Param::Up),
    (".lora.down.weight", Param::Down),
    (".lora.up.weight", Param::Up),
    (".lora_linear_layer.down.weight", Param::Down),
    (".lora_linear_layer.up.weight", Param::Up),
    ("_lora.down.weight", Param::Down),
    ("_lora.up.weight", Param::Up),
    (".lora_magnitude_vector.default.weight", Param::Magnitude),
    (".lora_magnitude_vector.weight", Param::Magnitude),
    (".lora_magnitude_vector", Param::Magnitude),
    (".dora_scale", Param::DoraScale),
    (".alpha", Param::Alpha),
    (".scalar", Param::Scalar),
    (".diff", Param::Diff),
    (".hada_w1_a", Param::HadaW1A),
    (".hada_w1_b", Param::HadaW1B),
    (".hada_w2_a", Param::HadaW2A),
    (".hada_w2_b", Param::HadaW2B),
    (".hada_t1", Param::HadaT1),
    (".hada_t2", Param::HadaT2),
    (".lokr_w1", Param::LokrW1),
    (".lokr_w1_a", Param::LokrW1A),
    (".lokr_w1_b", Param::LokrW1B),
    (".lokr_w2", Param::LokrW2),
    (".lokr_w2_a", Param::LokrW2A),
    (".lokr_w2_b", Param::LokrW2B),
    (".lokr_t2", Param::LokrT2),
];

/// Layer and part of a tensor's name; `None` if it is no part of a change.
pub(super) fn split(name: &str) -> Option<(String, Param)> {
    // xlabs: `double_blocks.0.processor.qkv_lora1.down.weight`; 1 is the picture's side, 2 the text's.
    for (ending, param) in [(".down.weight", Param::Down), (".up.weight", Param::Up)] {
        if let Some(layer) = name.strip_suffix(ending)
            && (layer.ends_with("_lora1") || layer.ends_with("_lora2"))
        {
            return Some((layer.to_owned(), param));
        }
    }
    ENDINGS
        .iter()
        .find_map(|(ending, param)| Some((name.strip_suffix(ending)?.to_owned(), *param)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_s_names_are_taken_apart() {
        let cases = [
            (
                "lora_unet_down_blocks_0_proj_in.lora_down.weight",
                "lora_unet_down_blocks_0_proj_in",
                Param::Down,
            ),
            (
                "unet.mid_block.attn1.to_q.lora_B.weight",
                "unet.mid_block.attn1.to_q",
                Param::Up,
            ),
            (
                "unet.mid_block.attn1.processor.to_q_lora.up.weight",
                "unet.mid_block.attn1.processor.to_q",
                Param::Up,
            ),
            (
                "double_blocks.0.processor.qkv_lora2.down.weight",
                "double_blocks.0.processor.qkv_lora2",
                Param::Down,
            ),
            (
                "single_blocks.0.processor.proj_lora.up.weight",
                "single_blocks.0.processor.proj",
                Param::Up,
            ),
            ("a.lokr_w1_a", "a", Param::LokrW1A),
            ("a.lora_magnitude_vector.weight", "a", Param::Magnitude),
            ("a.alpha", "a", Param::Alpha),
        ];
        for (name, layer, param) in cases {
            assert_eq!(split(name), Some((layer.to_owned(), param)), "{name}");
        }
        assert_eq!(split("emb_params"), None);
        assert_eq!(split("a.lora_B.bias"), None);
    }
}
