//! Configurations for files that bring none: a family's, with the sizes that the tensors' shapes show.

use serde_json::{Map, Value, json};

use super::{Component, TensorSource, WeightsError};
use crate::domain::model::Family;

/// The configurations of the released models, by component.
const CONFIGS: &[(Family, &str)] = &[
    (Family::Sd1, include_str!("../../config/architectures/sd15.json")),
    (Family::Sd2, include_str!("../../config/architectures/sd21.json")),
    (Family::Sdxl, include_str!("../../config/architectures/sdxl.json")),
    (
        Family::FluxDev,
        include_str!("../../config/architectures/flux-dev.json"),
    ),
    (
        Family::FluxSchnell,
        include_str!("../../config/architectures/flux-schnell.json"),
    ),
];

/// A family's configuration of `part`: a component's folder name or `scheduler`.
pub(super) fn family_config(family: Family, part: &str) -> Map<String, Value> {
    let text = CONFIGS
        .iter()
        .find(|(of, _)| *of == family)
        .map_or("{}", |(_, text)| text);
    let all: Value = serde_json::from_str(text).unwrap_or_default();
    all[part].as_object().cloned().unwrap_or_default()
}

/// The configuration of a component whose tensors (under the model's names) are `tensors`.
///
/// # Errors
/// A tensor that every model of the family has is missing.
pub(super) fn config_of(
    family: Family,
    component: Component,
    tensors: &dyn TensorSource,
) -> Result<String, WeightsError> {
    let mut config = family_config(family, component.folder());
    let found = Found {
        tensors,
        names: tensors.names(),
    };
    match component {
        Component::Unet => unet(&found, family, &mut config)?,
        Component::Vae => vae(&found, &mut config)?,
        Component::Transformer => flux(&found, &mut config)?,
        Component::TextEncoder => clip(&found, &mut config)?,
        Component::TextEncoder2 if family.is_flux() => t5(&found, &mut config)?,
        Component::TextEncoder2 => {
            found.size("text_projection.weight", 0)?;
            clip(&found, &mut config)?;
        }
    }
    Ok(Value::Object(config).to_string())
}

/// What there is. Layers are counted by the highest number that any of their tensors has, and parts are there if any of their
/// tensors is: one that lacks a tensor is missed when the model is built, and does not pass for a smaller model.
struct Found<'a> {
    tensors: &'a dyn TensorSource,
    names: Vec<String>,
}

impl Found<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.describe(name).map(|(shape, _)| shape)
    }

    /// Whether a part has any tensor.
    fn has(&self, part: &str) -> bool {
        self.below(part).next().is_some()
    }

    /// What follows `part.` in the names that begin so.
    fn below<'b>(&'b self, part: &'b str) -> impl Iterator<Item = &'b str> {
        let rest = move |name: &'b String| name.strip_prefix(part)?.strip_prefix('.');
        self.names.iter().filter_map(rest)
    }

    /// How many layers a list has: `list.0.…`, `list.1.…` and so on.
    fn count(&self, list: &str) -> usize {
        let number = |rest: &str| rest.split('.').next()?.parse::<usize>().ok();
        self.below(list)
            .filter_map(number)
            .map(|last| last + 1)
            .max()
            .unwrap_or(0)
    }

    /// The shape of a tensor that must be there.
    fn needed(&self, name: &str) -> Result<Vec<usize>, WeightsError> {
        self.shape(name)
            .ok_or_else(|| WeightsError::Missing { name: name.to_owned() })
    }

    /// Size of one dimension of a tensor that must be there.
    fn size(&self, name: &str, dimension: usize) -> Result<usize, WeightsError> {
        let shape = self.needed(name)?;
        shape
            .get(dimension)
            .copied()
            .ok_or_else(|| WeightsError::Missing { name: name.to_owned() })
    }
}

fn unet(found: &Found<'_>, family: Family, config: &mut Map<String, Value>) -> Result<(), WeightsError> {
    let levels = found.count("down_blocks");
    let channels: Vec<usize> = (0..levels)
        .map(|i| found.size(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Result<_, _>>()?;
    let attention = |at: String| found.has(&format!("{at}.attentions"));
    let down = (0..levels).map(|i| {
        if attention(format!("down_blocks.{i}")) {
            "CrossAttnDownBlock2D"
        } else {
            "DownBlock2D"
        }
    });
    let up = (0..levels).map(|i| {
        if attention(format!("up_blocks.{i}")) {
            "CrossAttnUpBlock2D"
        } else {
            "UpBlock2D"
        }
    });
    config.insert("down_block_types".to_owned(), json!(down.collect::<Vec<_>>()));
    config.insert("up_block_types".to_owned(), json!(up.collect::<Vec<_>>()));
    config.insert("block_out_channels".to_owned(), json!(channels));
    config.insert("in_channels".to_owned(), json!(found.size("conv_in.weight", 1)?));
    config.insert("out_channels".to_owned(), json!(found.size("conv_out.weight", 0)?));
    let layers = found.count("down_blocks.0.resnets");
    config.insert("layers_per_block".to_owned(), json!(layers));
    let depths: Vec<usize> = (0..levels)
        .map(|i| {
            found
                .count(&format!("down_blocks.{i}.attentions.0.transformer_blocks"))
                .max(1)
        })
        .collect();
    if depths.iter().any(|&depth| depth > 1) {
        config.insert("transformer_layers_per_block".to_owned(), json!(depths));
    }
    let with_attention = (0..levels)
        .find(|&i| attention(format!("down_blocks.{i}")))
        .unwrap_or(0);
    let block = format!("down_blocks.{with_attention}.attentions.0");
    let context = found.size(&format!("{block}.transformer_blocks.0.attn2.to_k.weight"), 1)?;
    config.insert("cross_attention_dim".to_owned(), json!(context));
    let linear = found.needed(&format!("{block}.proj_in.weight"))?.len() == 2;
    config.insert("use_linear_projection".to_owned(), json!(linear));
    if family != Family::Sd1 {
        let heads: Vec<usize> = channels.iter().map(|c| (c / 64).max(1)).collect();
        config.insert("attention_head_dim".to_owned(), json!(heads));
    }
    if family == Family::Sdxl {
        let added = found.size("add_embedding.linear_1.weight", 1)?;
        config.insert("projection_class_embeddings_input_dim".to_owned(), json!(added));
    }
    Ok(())
}

fn vae(found: &Found<'_>, config: &mut Map<String, Value>) -> Result<(), WeightsError> {
    let levels = found.count("encoder.down_blocks");
    let channels: Vec<usize> = (0..levels)
        .map(|i| found.size(&format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Result<_, _>>()?;
    let layers = found.count("encoder.down_blocks.0.resnets");
    config.insert("down_block_types".to_owned(), json!(vec!["DownEncoderBlock2D"; levels]));
    config.insert("up_block_types".to_owned(), json!(vec!["UpDecoderBlock2D"; levels]));
    config.insert("block_out_channels".to_owned(), json!(channels));
    config.insert("layers_per_block".to_owned(), json!(layers));
    config.insert(
        "latent_channels".to_owned(),
        json!(found.size("decoder.conv_in.weight", 1)?),
    );
    config.insert("use_quant_conv".to_owned(), json!(found.has("quant_conv")));
    config.insert("use_post_quant_conv".to_owned(), json!(found.has("post_quant_conv")));
    Ok(())
}

fn clip(found: &Found<'_>, config: &mut Map<String, Value>) -> Result<(), WeightsError> {
    let at = |rest: &str| format!("text_model.{rest}");
    let width = found.size(&at("embeddings.token_embedding.weight"), 1)?;
    config.insert(
        "vocab_size".to_owned(),
        json!(found.size(&at("embeddings.token_embedding.weight"), 0)?),
    );
    config.insert(
        "max_position_embeddings".to_owned(),
        json!(found.size(&at("embeddings.position_embedding.weight"), 0)?),
    );
    config.insert(
        "intermediate_size".to_owned(),
        json!(found.size(&at("encoder.layers.0.mlp.fc1.weight"), 0)?),
    );
    config.insert("hidden_size".to_owned(), json!(width));
    config.insert("num_attention_heads".to_owned(), json!((width / 64).max(1)));
    let layers = found.count(&at("encoder.layers"));
    // Stable Diffusion 2 reads the layer before the last, so that its configuration has one less than some files.
    let known = config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
    let layers = if layers == known + 1 { known } else { layers };
    config.insert("num_hidden_layers".to_owned(), json!(layers));
    if let Some(shape) = found.shape("text_projection.weight") {
        config.insert("projection_dim".to_owned(), json!(shape.first()));
    }
    Ok(())
}

fn t5(found: &Found<'_>, config: &mut Map<String, Value>) -> Result<(), WeightsError> {
    let attention = "encoder.block.0.layer.0.SelfAttention";
    let width = found.size(&format!("{attention}.q.weight"), 1)?;
    let heads = found.size(&format!("{attention}.relative_attention_bias.weight"), 1)?;
    let inner = found.size(&format!("{attention}.q.weight"), 0)?;
    config.insert("d_model".to_owned(), json!(width));
    config.insert("num_heads".to_owned(), json!(heads));
    config.insert("d_kv".to_owned(), json!(inner / heads.max(1)));
    config.insert(
        "d_ff".to_owned(),
        json!(found.size("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0)?),
    );
    config.insert("vocab_size".to_owned(), json!(found.size("shared.weight", 0)?));
    let layers = found.count("encoder.block");
    config.insert("num_layers".to_owned(), json!(layers));
    Ok(())
}

fn flux(found: &Found<'_>, config: &mut Map<String, Value>) -> Result<(), WeightsError> {
    let width = found.size("x_embedder.weight", 0)?;
    let head = found.size("transformer_blocks.0.attn.norm_q.weight", 0)?;
    let known = config.get("attention_head_dim").and_then(Value::as_u64).unwrap_or(0) as usize;
    config.insert("attention_head_dim".to_owned(), json!(head));
    config.insert("num_attention_heads".to_owned(), json!(width / head.max(1)));
    config.insert("in_channels".to_owned(), json!(found.size("x_embedder.weight", 1)?));
    config.insert("out_channels".to_owned(), json!(found.size("proj_out.weight", 0)?));
    config.insert(
        "joint_attention_dim".to_owned(),
        json!(found.size("context_embedder.weight", 1)?),
    );
    let pooled = found.size("time_text_embed.text_embedder.linear_1.weight", 1)?;
    config.insert("pooled_projection_dim".to_owned(), json!(pooled));
    let guidance = found.has("time_text_embed.guidance_embedder");
    config.insert("guidance_embeds".to_owned(), json!(guidance));
    config.insert("num_layers".to_owned(), json!(found.count("transformer_blocks")));
    let singles = found.count("single_transformer_blocks");
    config.insert("num_single_layers".to_owned(), json!(singles));
    if head != known {
        // As the released models split 128 into 16, 56 and 56.
        let side = (head - head / 8) / 4 * 2;
        config.insert("axes_dims_rope".to_owned(), json!([head - 2 * side, side, side]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::rc::Rc;

    use super::*;
    use crate::weights::{Folder, Precision, StoredType};

    struct Without<'a> {
        tensors: Rc<dyn TensorSource>,
        lost: &'a str,
    }

    impl TensorSource for Without<'_> {
        fn names(&self) -> Vec<String> {
            let mut names = self.tensors.names();
            names.retain(|name| name != self.lost);
            names
        }

        fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)> {
            (name != self.lost).then(|| self.tensors.describe(name))?
        }
    }

    /// A file that lacks a tensor must not pass for a smaller model: its configuration is that of the whole one, for which the
    /// tensor is then missed, or there is none.
    #[test]
    fn a_lost_tensor_does_not_change_the_configuration() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let parts = [
            ("pipelines/sd1", Family::Sd1, Component::Unet),
            ("pipelines/sd1", Family::Sd1, Component::Vae),
            ("pipelines/sd1", Family::Sd1, Component::TextEncoder),
            ("pipelines/sdxl", Family::Sdxl, Component::Unet),
            ("pipelines/sdxl", Family::Sdxl, Component::TextEncoder2),
            ("flux/dev", Family::FluxDev, Component::Transformer),
            ("flux/shared", Family::FluxDev, Component::TextEncoder2),
        ];
        for (model, family, component) in parts {
            let folder = Folder::open(&fixtures.join(model), Precision::Full).unwrap();
            let tensors = folder.tensors_in(component.folder()).unwrap();
            let whole = config_of(family, component, tensors.as_ref()).unwrap();
            for lost in &tensors.names() {
                let tensors = Rc::clone(&tensors);
                let rest = Without { tensors, lost };
                if let Ok(config) = config_of(family, component, &rest) {
                    assert_eq!(config, whole, "{model} without {lost}");
                }
            }
        }
    }
}
