//! A whole model in the cache: `models--owner--name/{refs,blobs,snapshots}`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use super::download::{cache, fetch};
use super::plan::{Plan, plan};
use super::remote::{FileInfo, Remote};
use super::{HubConfig, HubError, OnProgress, Progress};
use crate::weights::folder::{Files, pick};
use crate::weights::tree::Tree;
use crate::weights::{Component, HubRef, Precision};

/// The hub with its cache.
pub struct Hub {
    config: HubConfig,
    remote: Remote,
}

impl Hub {
    /// A hub at an address, with a cache.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        Self {
            remote: Remote::new(&config),
            config,
        }
    }

    /// The folder of a model in diffusers' layout; fetches what the cache lacks.
    ///
    /// # Errors
    /// [`HubError`] says what is missing and how to get it.
    pub fn model(&self, model: &HubRef, precision: Precision, on: &mut OnProgress<'_>) -> Result<PathBuf, HubError> {
        if self.config.offline {
            return self.cached_model(model, precision, |what| self.offline(what));
        }
        match self.fetch_model(model, precision, &|_| true, on) {
            // Without a network, what the cache has is as good as it gets.
            Err(HubError::Unreachable { url, reason }) => {
                let found = self.cached_model(model, precision, |_| HubError::Unreachable { url, reason })?;
                tracing::warn!(model = %model, "the hub cannot be reached; using the cached model");
                Ok(found)
            }
            other => other,
        }
    }

    /// The folder of a model of which one component is there; fetches what the cache lacks of that.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn part(
        &self,
        model: &HubRef,
        component: Component,
        precision: Precision,
        on: &mut OnProgress<'_>,
    ) -> Result<PathBuf, HubError> {
        let inside = format!("{}/", component.folder());
        let cached = self.snapshot_of(model).filter(|snapshot| {
            let missing = missing_parts(snapshot, precision);
            !missing.iter().any(|name| name.starts_with(&inside)) && snapshot.join(&inside).is_dir()
        });
        if self.config.offline {
            return cached.ok_or_else(|| self.offline(format!("{component} of {model}")));
        }
        let wanted = |name: &str| name == "model_index.json" || name.starts_with(&inside);
        match self.fetch_model(model, precision, &wanted, on) {
            Err(error @ HubError::Unreachable { .. }) => cached.ok_or(error),
            other => other,
        }
    }

    /// One file of a repository; fetches it if the cache lacks it.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn file(&self, file: &HubRef, on: &mut OnProgress<'_>) -> Result<PathBuf, HubError> {
        let name = file.file.clone().unwrap_or_default();
        let cached = self
            .snapshot_of(file)
            .map(|folder| folder.join(&name))
            .filter(|path| path.exists());
        if self.config.offline {
            return cached.ok_or_else(|| self.offline(format!("{file}")));
        }
        match self.remote.file(&file.id, &file.revision, &name) {
            Ok(info) => {
                let commit = info.commit.clone().unwrap_or_else(|| file.revision.clone());
                let commit = checked_commit(commit, &info.url)?;
                let snapshot = self.repo(file).pointer_path(&commit);
                self.get_all(&snapshot, &[(name.clone(), info)], on)?;
                self.write_ref(file, &commit)?;
                Ok(snapshot.join(name))
            }
            Err(error @ HubError::Unreachable { .. }) => cached.ok_or(error),
            Err(error) => Err(error),
        }
    }

    fn fetch_model(
        &self,
        model: &HubRef,
        precision: Precision,
        wanted: &dyn Fn(&str) -> bool,
        on: &mut OnProgress<'_>,
    ) -> Result<PathBuf, HubError> {
        let info = self.remote.repo(&model.id, &model.revision)?;
        let commit = checked_commit(info.sha.clone(), &model.id)?;
        let Plan {
            mut small,
            mut weights,
            mut indices,
        } = plan(&model.id, &info.files(), precision)?;
        for names in [&mut small, &mut weights, &mut indices] {
            names.retain(|name| wanted(name));
        }
        let snapshot = self.repo(model).pointer_path(&commit);
        let look_up = |names: &[String]| -> Result<Vec<(String, FileInfo)>, HubError> {
            let missing = names.iter().filter(|name| !snapshot.join(name).exists());
            missing
                .map(|name| Ok((name.clone(), self.remote.file(&model.id, &commit, name)?)))
                .collect()
        };
        self.get_all(&snapshot, &look_up(&small)?, on)?;
        for index in &indices {
            weights.extend(parts_of(&snapshot, index)?);
        }
        self.get_all(&snapshot, &look_up(&weights)?, on)?;
        self.write_ref(model, &commit)?;
        Ok(snapshot)
    }

    fn get_all(&self, snapshot: &Path, files: &[(String, FileInfo)], on: &mut OnProgress<'_>) -> Result<(), HubError> {
        let total = files.iter().map(|(_, info)| info.size).sum();
        let mut before = 0;
        for (name, info) in files {
            let blob = blobs_beside(snapshot).join(&info.etag);
            let mut tell = |bytes| {
                on(Progress {
                    file: name,
                    done: before + bytes,
                    total,
                });
            };
            fetch(&self.remote, info, &blob, &mut tell)?;
            point(&snapshot.join(name), &blob, name)?;
            before += info.size;
        }
        Ok(())
    }

    /// The model's folder if the cache has all of it; `lacking` makes the error from what is missing.
    fn cached_model(
        &self,
        model: &HubRef,
        precision: Precision,
        lacking: impl FnOnce(String) -> HubError,
    ) -> Result<PathBuf, HubError> {
        let Some(snapshot) = self.snapshot_of(model) else {
            return Err(lacking(format!("{model}")));
        };
        let missing = missing_parts(&snapshot, precision);
        if missing.is_empty() {
            return Ok(snapshot);
        }
        Err(lacking(format!("{} of {model}", missing.join(", "))))
    }

    fn snapshot_of(&self, model: &HubRef) -> Option<PathBuf> {
        let refs = self.folder(model).join("refs").join(&model.revision);
        let commit = fs::read_to_string(refs).map_or_else(|_| model.revision.clone(), |text| text.trim().to_owned());
        Some(self.repo(model).pointer_path(&commit)).filter(|path| path.is_dir())
    }

    fn write_ref(&self, model: &HubRef, commit: &str) -> Result<(), HubError> {
        if model.revision == commit {
            return Ok(());
        }
        let path = self.folder(model).join("refs").join(&model.revision);
        put(&path, |new| fs::write(new, commit)).map_err(cache(&path))
    }

    fn repo(&self, model: &HubRef) -> hf_hub::CacheRepo {
        Cache::new(self.config.cache.clone()).repo(address(model))
    }

    fn folder(&self, model: &HubRef) -> PathBuf {
        self.config.cache.join(address(model).folder_name())
    }

    fn offline(&self, what: String) -> HubError {
        HubError::Offline {
            what,
            cache: self.config.cache.clone(),
        }
    }
}

fn address(model: &HubRef) -> Repo {
    Repo::with_revision(model.id.clone(), RepoType::Model, model.revision.clone())
}

/// A commit becomes a folder's name, so it must be one.
fn checked_commit(commit: String, url: &str) -> Result<String, HubError> {
    let safe = !commit.is_empty()
        && commit
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let odd = || HubError::Answer {
        url: url.to_owned(),
        found: format!("the commit `{commit}`"),
    };
    if safe { Ok(commit) } else { Err(odd()) }
}

fn blobs_beside(snapshot: &Path) -> PathBuf {
    snapshot
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new(""))
        .join("blobs")
}

/// Makes `snapshot/unet/config.json` a link to its content, relative so that the cache can be moved.
fn point(pointer: &Path, blob: &Path, name: &str) -> Result<(), HubError> {
    if pointer.exists() {
        return Ok(());
    }
    let mut target = PathBuf::from("../..");
    for _ in 0..name.matches('/').count() {
        target.push("..");
    }
    target.push("blobs");
    target.push(blob.file_name().unwrap_or_default());
    put(pointer, |new| std::os::unix::fs::symlink(&target, new)).map_err(cache(pointer))
}

/// Puts a new link or file in place at once: whoever looks meanwhile, another worker say, finds the old one or the new one.
fn put(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder)?;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let new = folder.join(format!(".{}-{count}.new", std::process::id()));
    make(&new)?;
    fs::rename(&new, path)
}

/// The files that an index of shards names, in the index's folder.
fn parts_of(snapshot: &Path, index: &str) -> Result<Vec<String>, HubError> {
    let odd = |found: &str| HubError::Answer {
        url: index.to_owned(),
        found: found.to_owned(),
    };
    let text = fs::read_to_string(snapshot.join(index)).map_err(cache(&snapshot.join(index)))?;
    let json: Value = serde_json::from_str(&text).map_err(|_| odd("no index of parts"))?;
    let map = json["weight_map"].as_object().ok_or_else(|| odd("no index of parts"))?;
    let folder = index.rsplit_once('/').map_or("", |(folder, _)| folder);
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    if names
        .iter()
        .any(|name| name.contains(['/', '\\']) || !name.ends_with(".safetensors"))
    {
        return Err(odd("an index with parts elsewhere"));
    }
    Ok(names.into_iter().map(|name| format!("{folder}/{name}")).collect())
}

/// What a snapshot lacks to be loaded, as far as its `model_index.json` tells.
fn missing_parts(snapshot: &Path, precision: Precision) -> Vec<String> {
    let tree = Tree::Disk(snapshot.to_owned());
    let Ok(Some(text)) = tree.text("model_index.json") else {
        return vec!["model_index.json".to_owned()];
    };
    let index: Value = serde_json::from_str(&text).unwrap_or_default();
    let wanted = |name: &str| {
        index[name]
            .as_array()
            .is_some_and(|pair| pair.iter().any(|class| !class.is_null()))
    };
    let mut missing = Vec::new();
    let mut need = |inner: String| {
        if !snapshot.join(&inner).exists() {
            missing.push(inner);
        }
    };
    need("scheduler/scheduler_config.json".to_owned());
    let mut without = Vec::new();
    for &component in Component::ALL {
        let folder = component.folder();
        if !wanted(folder) {
            continue;
        }
        need(format!("{folder}/config.json"));
        match pick(&tree.list(folder).unwrap_or_default(), precision) {
            Some(Files::One(name)) => need(format!("{folder}/{name}")),
            Some(Files::Shards(names)) => names.iter().for_each(|name| need(format!("{folder}/{name}"))),
            Some(Files::Index(name)) => {
                let parts = parts_of(snapshot, &format!("{folder}/{name}"));
                parts
                    .unwrap_or_else(|_| vec![format!("{folder}/{name}")])
                    .into_iter()
                    .for_each(&mut need);
            }
            None => without.push(format!("{folder}/*.safetensors")),
        }
    }
    for folder in ["tokenizer", "tokenizer_2"] {
        if wanted(folder) && tree.list(folder).unwrap_or_default().is_empty() {
            without.push(folder.to_owned());
        }
    }
    missing.extend(without);
    missing
}
