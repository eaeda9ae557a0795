//! Which files of a repository a model needs.

use std::collections::BTreeSet;

use super::HubError;
use crate::weights::folder::{Files, is_pickle, pick};
use crate::weights::{Component, Precision, TokenizerFiles};

/// The files that a model in diffusers' layout needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Configurations, tokenizers, and the indices of shards.
    pub small: Vec<String>,
    /// Weights that are one file, and shards without an index.
    pub weights: Vec<String>,
    /// Among `small`: indices that name further weights.
    pub indices: Vec<String>,
}

/// Plans the download of a repository with these files.
///
/// # Errors
/// It has no model in diffusers' layout, or one part of it only as a pickle.
pub(super) fn plan(id: &str, files: &[String], precision: Precision) -> Result<Plan, HubError> {
    let all: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    if !all.contains("model_index.json") {
        return Err(HubError::NoModel {
            id: id.to_owned(),
            hint: hint(id, files),
        });
    }
    let mut plan = Plan::default();
    let mut small = vec![
        "model_index.json".to_owned(),
        "scheduler/scheduler_config.json".to_owned(),
    ];
    for folder in ["tokenizer", "tokenizer_2"] {
        small.extend(TokenizerFiles::NAMES.iter().map(|name| format!("{folder}/{name}")));
    }
    for &component in Component::ALL {
        let folder = component.folder();
        let names: Vec<String> = files
            .iter()
            .filter_map(|file| file.strip_prefix(folder)?.strip_prefix('/'))
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            continue;
        }
        small.push(format!("{folder}/config.json"));
        match pick(&names, precision) {
            Some(Files::One(name)) => plan.weights.push(format!("{folder}/{name}")),
            Some(Files::Shards(names)) => plan.weights.extend(names.iter().map(|name| format!("{folder}/{name}"))),
            Some(Files::Index(name)) => {
                small.push(format!("{folder}/{name}"));
                plan.indices.push(format!("{folder}/{name}"));
            }
            None => {
                if let Some(pickle) = names.iter().find(|name| is_pickle(name)) {
                    return Err(HubError::Pickle {
                        id: id.to_owned(),
                        file: format!("{folder}/{pickle}"),
                    });
                }
            }
        }
    }
    plan.small = small.into_iter().filter(|name| all.contains(name.as_str())).collect();
    Ok(plan)
}

/// What to do with a repository that is no diffusers folder.
fn hint(id: &str, files: &[String]) -> String {
    let single: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|name| name.ends_with(".safetensors") || name.ends_with(".gguf"))
        .take(8)
        .collect();
    if let (Some(first), all) = (single.first(), single.join(", ")) {
        return format!("name one of its files, such as {id}/{first} (it has {all})");
    }
    match files.iter().find(|name| is_pickle(name)) {
        Some(pickle) => format!("it has only pickles ({pickle}), which are not read"),
        None => "name another repository".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(files: &[&str], precision: Precision) -> Result<Plan, HubError> {
        let files: Vec<String> = files.iter().map(|&f| f.to_owned()).collect();
        plan("a/b", &files, precision)
    }

    #[test]
    fn takes_only_what_is_needed() {
        let files = &[
            ".gitattributes",
            "README.md",
            "model_index.json",
            "v1-5-pruned.ckpt",
            "v1-5-pruned-emaonly.safetensors",
            "safety_checker/model.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        let half = planned(files, Precision::Half).unwrap();
        assert_eq!(
            half.weights,
            [
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
                "text_encoder/model.fp16.safetensors"
            ]
        );
        assert_eq!(
            half.small,
            [
                "model_index.json",
                "scheduler/scheduler_config.json",
                "tokenizer/vocab.json",
                "tokenizer/merges.txt",
                "unet/config.json",
                "vae/config.json",
                "text_encoder/config.json"
            ]
        );
        let full = planned(files, Precision::Full).unwrap();
        assert_eq!(full.weights[0], "unet/diffusion_pytorch_model.safetensors");
    }

    #[test]
    fn an_index_is_fetched_before_its_parts() {
        let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
        let part = "transformer/diffusion_pytorch_model-00001-of-00001.safetensors";
        let plan = planned(&["model_index.json", index, part], Precision::Half).unwrap();
        assert_eq!(
            (plan.indices.as_slice(), plan.weights.len()),
            ([index.to_owned()].as_slice(), 0)
        );
    }

    #[test]
    fn what_cannot_be_loaded_says_what_to_do() {
        let error = planned(
            &["model_index.json", "unet/diffusion_pytorch_model.bin"],
            Precision::Half,
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("unet/diffusion_pytorch_model.bin"),
            "{error}"
        );
        let error = planned(&["flux1-dev-Q4_0.gguf"], Precision::Half).unwrap_err();
        assert!(error.to_string().contains("a/b/flux1-dev-Q4_0.gguf"), "{error}");
        let error = planned(&["model.ckpt"], Precision::Half).unwrap_err();
        assert!(error.to_string().contains("only pickles (model.ckpt)"), "{error}");
    }
}
