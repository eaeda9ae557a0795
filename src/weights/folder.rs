//! A model as a folder in diffusers' layout: `model_index.json`, `unet/`, `vae/`, `text_encoder/`, ...

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use serde::Deserialize;

use super::safetensors::SafeTensors;
use super::tree::Tree;
use super::{Component, Precision, TensorSource, TokenizerFiles, WeightsError};

/// A folder in diffusers' layout.
#[derive(Clone, Debug)]
pub struct Folder {
    tree: Tree,
    precision: Precision,
}

impl Folder {
    /// Opens a folder; `precision` says which variant to take where there are two.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn open(path: &Path, precision: Precision) -> Result<Self, WeightsError> {
        let meta = std::fs::metadata(path).map_err(|source| WeightsError::Io {
            path: path.to_owned(),
            source,
        })?;
        if !meta.is_dir() {
            return Err(WeightsError::damaged(path, "this is no folder"));
        }
        Ok(Self {
            tree: Tree::Disk(path.to_owned()),
            precision,
        })
    }

    /// A folder built into the program.
    #[must_use]
    pub fn built_in(tree: Tree) -> Self {
        Self {
            tree,
            precision: Precision::Full,
        }
    }

    /// The files.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Whether a component's folder has anything in it.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn has(&self, component: Component) -> Result<bool, WeightsError> {
        Ok(!self.tree.list(component.folder())?.is_empty())
    }

    /// A component's `config.json`.
    ///
    /// # Errors
    /// It is missing or cannot be read.
    pub fn config(&self, component: Component) -> Result<String, WeightsError> {
        self.need(&format!("{}/config.json", component.folder()))
    }

    /// The text of a file that the folder must have.
    ///
    /// # Errors
    /// It is missing or cannot be read.
    pub fn need(&self, inner: &str) -> Result<String, WeightsError> {
        self.tree.text(inner)?.ok_or_else(|| WeightsError::NoPart {
            place: self.tree.path(""),
            what: format!("`{inner}`"),
        })
    }

    /// A component's tensors; only the headers are read.
    ///
    /// # Errors
    /// There is no safetensors file, a shard is missing, or a file is damaged.
    pub fn component(&self, component: Component) -> Result<Rc<dyn TensorSource>, WeightsError> {
        self.tensors_in(component.folder())
    }

    /// The tensors that lie in `folder` (`""` for this one itself); only the headers are read.
    ///
    /// # Errors
    /// As [`Folder::component`].
    pub fn tensors_in(&self, folder: &str) -> Result<Rc<dyn TensorSource>, WeightsError> {
        let inside = |name: &str| inside(folder, name);
        let names = self.tree.list(folder)?;
        let Some(files) = pick(&names, self.precision) else {
            return Err(self.nothing_in(folder, &names));
        };
        let (names, map) = match files {
            Files::One(name) => (vec![name], None),
            Files::Shards(names) => (names, None),
            Files::Index(index) => {
                let map = self.shards(&inside(&index))?;
                let names: BTreeSet<_> = map.values().cloned().collect();
                (names.into_iter().collect(), Some((index, map)))
            }
        };
        let storages = names
            .iter()
            .map(|name| {
                self.tree.storage(&inside(name)).map_err(|error| match error {
                    WeightsError::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                        WeightsError::NoPart {
                            place: path,
                            what: "a part of the weights".to_owned(),
                        }
                    }
                    other => other,
                })
            })
            .collect::<Result<_, _>>()?;
        let tensors = SafeTensors::from_storages(storages)?;
        if let Some((index, map)) = map {
            for name in map.keys() {
                if tensors.describe(name).is_none() {
                    let reason = format!("tensor `{name}` is in none of the parts");
                    return Err(WeightsError::damaged(&self.tree.path(&inside(&index)), reason));
                }
            }
        }
        Ok(Rc::new(tensors))
    }

    /// A tokenizer's files, from `tokenizer` or `tokenizer_2` (`""` for this folder itself); `None` if there are none.
    ///
    /// # Errors
    /// A file cannot be read, or only a part of it is there.
    pub fn tokenizer(&self, folder: &str) -> Result<Option<TokenizerFiles>, WeightsError> {
        let mut files = BTreeMap::new();
        for &name in TokenizerFiles::NAMES {
            if let Some(bytes) = self.tree.read(&inside(folder, name))? {
                files.insert(name.to_owned(), bytes);
            }
        }
        let has = |name| files.contains_key(name);
        let complete = has("tokenizer.json") || has("spiece.model") || (has("vocab.json") && has("merges.txt"));
        if complete {
            return Ok(Some(TokenizerFiles::Files(files)));
        }
        if self.tree.list(folder)?.is_empty() {
            return Ok(None);
        }
        Err(WeightsError::NoPart {
            place: self.tree.path(folder),
            what: "`tokenizer.json` (or `vocab.json` with `merges.txt`)".to_owned(),
        })
    }

    fn nothing_in(&self, folder: &str, names: &[String]) -> WeightsError {
        if let Some(pickle) = names.iter().find(|name| is_pickle(name)) {
            return WeightsError::Pickle {
                path: self.tree.path(folder).join(pickle),
            };
        }
        WeightsError::NoPart {
            place: self.tree.path(folder),
            what: "a .safetensors file".to_owned(),
        }
    }

    fn shards(&self, index: &str) -> Result<BTreeMap<String, String>, WeightsError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = self.need(index)?;
        let damaged = |reason: String| WeightsError::damaged(&self.tree.path(index), reason);
        let index: Index = serde_json::from_str(&text).map_err(|e| damaged(format!("it cannot be read: {e}")))?;
        for name in index.weight_map.values() {
            if name.contains(['/', '\\']) || !name.ends_with(".safetensors") {
                return Err(damaged(format!(
                    "it names the part `{name}`, which is no safetensors file beside it"
                )));
            }
        }
        Ok(index.weight_map)
    }
}

/// Whether a file's name is that of a pickle.
pub(super) fn is_pickle(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".ckpt", ".bin", ".pt", ".pth", ".pkl"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// The files that make up one component.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Files {
    One(String),
    Index(String),
    Shards(Vec<String>),
}

/// Picks the weights among the names of a component's folder: the fp16 variant for half precision, the full one
/// otherwise, and whichever there is if there is only one.
pub(super) fn pick(names: &[String], precision: Precision) -> Option<Files> {
    let half = |name: &str| name.contains("fp16");
    let wanted = |name: &&String| half(name) == (precision == Precision::Half);
    // Other variants (`non_ema`, `openvino`, `fp8`) only when nothing plainer is there.
    let plain = |name: &&String| {
        name.split(['.', '-']).all(|part| {
            matches!(
                part,
                "diffusion_pytorch_model" | "model" | "fp16" | "safetensors" | "index" | "json" | "of"
            ) || part.bytes().all(|b| b.is_ascii_digit())
        })
    };
    let find = |end: fn(&str) -> bool| {
        let mut found: Vec<&String> = names.iter().filter(|name| end(name)).collect();
        found.sort_by_key(|name| (!plain(name), !wanted(name)));
        found.first().map(|name| (*name).clone())
    };
    let index = find(|name| name.contains(".safetensors.index.") && name.ends_with(".json"));
    let single = find(|name| name.ends_with(".safetensors") && shard_of(name).is_none());
    match (index, single) {
        (Some(index), Some(single)) => {
            let better = (!plain(&&single), !wanted(&&single)) < (!plain(&&index), !wanted(&&index));
            Some(if better {
                Files::One(single)
            } else {
                Files::Index(index)
            })
        }
        (Some(index), None) => Some(Files::Index(index)),
        (None, Some(single)) => Some(Files::One(single)),
        (None, None) => shards_without_index(names, precision),
    }
}

/// Path of `name` in `folder`, which may be `""`.
fn inside(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

fn shards_without_index(names: &[String], precision: Precision) -> Option<Files> {
    let shards: Vec<&String> = names
        .iter()
        .filter(|n| n.ends_with(".safetensors") && shard_of(n).is_some())
        .collect();
    let half = precision == Precision::Half;
    let (wanted, other): (Vec<&String>, Vec<&String>) = shards.iter().partition(|n| n.contains("fp16") == half);
    let chosen = if wanted.is_empty() { other } else { wanted };
    let count = shard_of(chosen.first()?)?.1;
    // All of them by name, so that a missing one is named when it is opened.
    let first = chosen.first()?;
    let all = (1..=count)
        .map(|i| {
            first.replace(
                &format!("-{:05}-of-", shard_of(first).map_or(1, |s| s.0)),
                &format!("-{i:05}-of-"),
            )
        })
        .collect();
    Some(Files::Shards(all))
}

/// `(2, 3)` of `model-00002-of-00003.safetensors`.
fn shard_of(name: &str) -> Option<(usize, usize)> {
    let (before, after) = name.split_once("-of-")?;
    let index = before.rsplit_once('-')?.1.parse().ok()?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    let count = digits.parse().ok().filter(|&count| count <= 999)?;
    Some((index, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(names: &[&str], precision: Precision) -> Option<Files> {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        pick(&names, precision)
    }

    #[test]
    fn takes_the_variant_that_fits_the_compute_type() {
        let both = &[
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.safetensors",
        ];
        let one = |name: &str| Some(Files::One(name.to_owned()));
        assert_eq!(picked(both, Precision::Half), one(both[0]));
        assert_eq!(picked(both, Precision::Full), one(both[1]));
        assert_eq!(picked(&both[..1], Precision::Full), one(both[0]));
        assert_eq!(picked(&both[1..], Precision::Half), one(both[1]));
        let ema = &[
            "diffusion_pytorch_model.non_ema.safetensors",
            "diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(picked(ema, Precision::Half), one(ema[1]));
    }

    #[test]
    fn prefers_an_index_to_its_parts() {
        let names = &[
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        assert_eq!(
            picked(names, Precision::Half),
            Some(Files::Index("model.safetensors.index.json".to_owned()))
        );
        let with_half = &[names[1], names[3], "model.fp16.safetensors"];
        assert_eq!(
            picked(with_half, Precision::Half),
            Some(Files::One("model.fp16.safetensors".to_owned()))
        );
        assert_eq!(
            picked(with_half, Precision::Full),
            Some(Files::Index("model.safetensors.index.json".to_owned()))
        );
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let all = Some(Files::Shards(shards.iter().map(|&s| s.to_owned()).collect()));
        assert_eq!(picked(&shards, Precision::Full), all);
        assert_eq!(picked(&shards[1..], Precision::Full), all);
    }

    #[test]
    fn takes_no_pickle() {
        assert_eq!(
            picked(&["diffusion_pytorch_model.bin", "config.json"], Precision::Full),
            None
        );
        assert!(is_pickle("v1-5-pruned.CKPT") && !is_pickle("a.safetensors"));
    }
}
