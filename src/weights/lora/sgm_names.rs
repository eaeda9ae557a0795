//! The original (LDM, SGM) names of a UNet's layers, for LoRAs that were trained on checkpoints.

/// Pairs of original and diffusers name, for a UNet with these layers.
pub(super) fn sgm_layers(names: &[String]) -> Vec<(String, String)> {
    let has = |start: &str| names.iter().any(|name| name.starts_with(start));
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut at = 1;
    for level in (0..).take_while(|level| has(&format!("down_blocks.{level}."))) {
        let block = format!("down_blocks.{level}");
        for layer in (0..).take_while(|layer| has(&format!("{block}.resnets.{layer}."))) {
            blocks.push((format!("input_blocks.{at}.0"), format!("{block}.resnets.{layer}")));
            blocks.push((format!("input_blocks.{at}.1"), format!("{block}.attentions.{layer}")));
            at += 1;
        }
        if has(&format!("{block}.downsamplers.0.")) {
            blocks.push((
                format!("input_blocks.{at}.0.op"),
                format!("{block}.downsamplers.0.conv"),
            ));
            at += 1;
        }
    }
    for (theirs, ours) in [("0", "resnets.0"), ("1", "attentions.0"), ("2", "resnets.1")] {
        blocks.push((format!("middle_block.{theirs}"), format!("mid_block.{ours}")));
    }
    at = 0;
    for level in (0..).take_while(|level| has(&format!("up_blocks.{level}."))) {
        let block = format!("up_blocks.{level}");
        let attention = has(&format!("{block}.attentions."));
        for layer in (0..).take_while(|layer| has(&format!("{block}.resnets.{layer}."))) {
            blocks.push((format!("output_blocks.{at}.0"), format!("{block}.resnets.{layer}")));
            blocks.push((format!("output_blocks.{at}.1"), format!("{block}.attentions.{layer}")));
            at += 1;
        }
        let place = if attention { 2 } else { 1 };
        let last = format!("output_blocks.{}.{place}.conv", at.max(1) - 1);
        blocks.push((last, format!("{block}.upsamplers.0.conv")));
    }
    names
        .iter()
        .filter_map(|name| Some((original(name, &blocks)?, name.clone())))
        .collect()
}

fn original(name: &str, blocks: &[(String, String)]) -> Option<String> {
    const OUTSIDE: &[(&str, &str)] = &[
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("label_emb.0.0", "add_embedding.linear_1"),
        ("label_emb.0.2", "add_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("out.2", "conv_out"),
    ];
    const RESNET: &[(&str, &str)] = &[
        ("in_layers.2", "conv1"),
        ("out_layers.3", "conv2"),
        ("emb_layers.1", "time_emb_proj"),
        ("skip_connection", "conv_shortcut"),
    ];
    let of = |table: &[(&str, &str)], own: &str| {
        table
            .iter()
            .find(|(_, ours)| *ours == own)
            .map(|(theirs, _)| (*theirs).to_owned())
    };
    if let Some(theirs) = of(OUTSIDE, name) {
        return Some(theirs);
    }
    blocks.iter().find_map(|(theirs, ours)| {
        let rest = name.strip_prefix(ours.as_str())?;
        if rest.is_empty() {
            return Some(theirs.clone());
        }
        let rest = rest.strip_prefix('.')?;
        Some(format!(
            "{theirs}.{}",
            of(RESNET, rest).unwrap_or_else(|| rest.to_owned())
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_as_the_original_code_does() {
        let names: Vec<String> = [
            "conv_in",
            "down_blocks.0.resnets.0.conv1",
            "down_blocks.0.downsamplers.0.conv",
            "down_blocks.1.resnets.0.conv1",
            "down_blocks.1.attentions.0.proj_in",
            "mid_block.attentions.0.proj_out",
            "up_blocks.0.resnets.0.conv_shortcut",
            "up_blocks.0.resnets.1.conv1",
            "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
            "up_blocks.0.upsamplers.0.conv",
            "up_blocks.1.resnets.0.time_emb_proj",
        ]
        .map(str::to_owned)
        .to_vec();
        let theirs: Vec<String> = sgm_layers(&names).into_iter().map(|(theirs, _)| theirs).collect();
        assert_eq!(
            theirs,
            [
                "input_blocks.0.0",
                "input_blocks.1.0.in_layers.2",
                "input_blocks.2.0.op",
                "input_blocks.3.0.in_layers.2",
                "input_blocks.3.1.proj_in",
                "middle_block.1.proj_out",
                "output_blocks.0.0.skip_connection",
                "output_blocks.1.0.in_layers.2",
                "output_blocks.1.1.transformer_blocks.0.attn1.to_out.0",
                "output_blocks.1.2.conv",
                "output_blocks.2.0.emb_layers.1",
            ]
        );
    }
}
