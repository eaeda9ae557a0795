//! The folder that LoRAs are named in.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::LoraError;
use crate::domain::model::LoraInfo;
use crate::weights::SafeTensors;

/// A folder of LoRA files. Nothing outside it is ever opened, not even through a link.
#[derive(Clone, Debug)]
pub struct LoraDir {
    root: PathBuf,
}

const ENDING: &str = "safetensors";
const DEEPEST: usize = 8;
const WORDS: usize = 8;

impl LoraDir {
    /// A folder; that it exists is seen when something is looked for in it.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Every LoRA below the folder, by name. Of a file that cannot be read there is the name only; who asks for it is told
    /// what is wrong with it.
    #[must_use]
    pub fn list(&self) -> Vec<LoraInfo> {
        self.files().iter().map(|(name, path)| info(name, path)).collect()
    }

    /// The file of a LoRA: by its path below the folder, with or without ending, or by its bare name in any subfolder.
    ///
    /// # Errors
    /// The name leads out of the folder, or no file or several have it.
    pub fn find(&self, name: &str) -> Result<PathBuf, LoraError> {
        let path = Path::new(name);
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !plain || name.contains(['\\', '\0']) {
            return Err(LoraError::Outside { name: name.to_owned() });
        }
        let wanted = name.strip_suffix(".safetensors").unwrap_or(name);
        let direct = self.root.join(format!("{wanted}.{ENDING}"));
        if direct.exists() {
            return self
                .inside(&direct)
                .ok_or_else(|| LoraError::Outside { name: name.to_owned() });
        }
        let files = self.files();
        let same = |(own, _): &&(String, PathBuf)| {
            own.eq_ignore_ascii_case(wanted)
                || own
                    .rsplit('/')
                    .next()
                    .is_some_and(|stem| stem.eq_ignore_ascii_case(wanted))
        };
        let found: Vec<_> = files.iter().filter(same).collect();
        match found.as_slice() {
            [(_, path)] => Ok(path.clone()),
            [] => {
                let mut names: Vec<&str> = files.iter().map(|(own, _)| own.as_str()).take(10).collect();
                if names.is_empty() {
                    names.push("(none)");
                }
                Err(LoraError::NotFound {
                    name: name.to_owned(),
                    available: names.join(", "),
                })
            }
            many => {
                let candidates = many.iter().map(|(own, _)| own.as_str()).collect::<Vec<_>>().join(", ");
                Err(LoraError::Ambiguous {
                    name: name.to_owned(),
                    candidates,
                })
            }
        }
    }

    /// The true path of a file, if it lies below the folder.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let (root, path) = (self.root.canonicalize().ok()?, path.canonicalize().ok()?);
        (path.starts_with(&root) && path.is_file()).then_some(path)
    }

    /// Name and path of every file, sorted by name.
    fn files(&self) -> Vec<(String, PathBuf)> {
        let mut found = Vec::new();
        self.gather(&self.root, "", DEEPEST, &mut found);
        found.sort_unstable();
        found
    }

    fn gather(&self, folder: &Path, prefix: &str, depth: usize, found: &mut Vec<(String, PathBuf)>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                let inside = path.canonicalize().ok().zip(self.root.canonicalize().ok());
                if depth > 0 && inside.is_some_and(|(path, root)| path.starts_with(root)) {
                    self.gather(&path, &format!("{prefix}{name}/"), depth - 1, found);
                }
            } else if let (Some(stem), Some(path)) = (name.strip_suffix(".safetensors"), self.inside(&path)) {
                found.push((format!("{prefix}{stem}"), path));
            }
        }
    }
}

fn info(name: &str, path: &Path) -> LoraInfo {
    let metadata = SafeTensors::open(path).map_or_else(|_| BTreeMap::new(), |file| file.metadata().clone());
    let text = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| metadata.get(*key))
            .filter(|text| !text.is_empty())
            .cloned()
    };
    let phrase = text(&[
        "modelspec.trigger_phrase",
        "modelspec.trigger_word",
        "ss_trigger_words",
        "trigger_words",
    ]);
    let trigger_words = match phrase {
        Some(phrase) => phrase
            .split(',')
            .map(|word| word.trim().to_owned())
            .filter(|word| !word.is_empty())
            .collect(),
        None => metadata
            .get("ss_tag_frequency")
            .map(|text| frequent_tags(text))
            .unwrap_or_default(),
    };
    let base_model = text(&["modelspec.architecture", "ss_base_model_version", "ss_sd_model_name"]);
    LoraInfo {
        name: name.to_owned(),
        trigger_words,
        base_model,
    }
}

/// The tags that a training set had most often, from kohya's `{folder: {tag: count}}`.
fn frequent_tags(text: &str) -> Vec<String> {
    let all: Value = serde_json::from_str(text).unwrap_or_default();
    let mut tags: Vec<(u64, &String)> = Vec::new();
    for folder in all.as_object().into_iter().flat_map(|folders| folders.values()) {
        for (tag, count) in folder.as_object().into_iter().flatten() {
            tags.push((count.as_u64().unwrap_or(0), tag));
        }
    }
    tags.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    let mut words: Vec<String> = Vec::new();
    for (_, tag) in tags {
        let tag = tag.trim().to_owned();
        if words.len() < WORDS && !tag.is_empty() && !words.contains(&tag) {
            words.push(tag);
        }
    }
    words
}
