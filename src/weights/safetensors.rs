//! Tensors of safetensors files: one file, or a model split over several.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use super::header::{Entry, read_header};
use super::storage::Storage;
use super::{Located, StoredType, TensorSource, WeightsError};

/// The tensors of one safetensors file, or of the shards of one model together.
#[derive(Debug)]
pub struct SafeTensors {
    files: Vec<Storage>,
    tensors: HashMap<String, (usize, Entry)>,
    metadata: BTreeMap<String, String>,
}

impl SafeTensors {
    /// Opens one file; reads and checks its header only.
    ///
    /// # Errors
    /// It cannot be read or is damaged.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        Self::from_storages(vec![Storage::open(path)?])
    }

    /// Opens the shards of one model.
    ///
    /// # Errors
    /// As [`SafeTensors::open`]; a tensor is in two of them.
    pub fn open_all<P: AsRef<Path>>(paths: &[P]) -> Result<Self, WeightsError> {
        Self::from_storages(
            paths
                .iter()
                .map(|p| Storage::open(p.as_ref()))
                .collect::<Result<_, _>>()?,
        )
    }

    /// A file built into the program; `name` stands for its path in messages.
    ///
    /// # Errors
    /// The bytes are damaged.
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        Self::from_storages(vec![Storage::memory(name, bytes)])
    }

    pub(super) fn from_storages(files: Vec<Storage>) -> Result<Self, WeightsError> {
        let mut tensors = HashMap::new();
        let mut metadata = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            let header = read_header(file)?;
            metadata.extend(header.metadata);
            for (name, entry) in header.tensors {
                if tensors.insert(name.clone(), (index, entry)).is_some() {
                    let reason = format!("tensor `{name}` is in another part of the model too");
                    return Err(WeightsError::damaged(file.path(), reason));
                }
            }
        }
        Ok(Self {
            files,
            tensors,
            metadata,
        })
    }

    /// The free texts that the writer put into the header.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The first file, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), Storage::path)
    }

    fn entry(&self, name: &str) -> Result<(&Storage, &Entry), WeightsError> {
        let missing = || WeightsError::Missing { name: name.to_owned() };
        let (file, entry) = self.tensors.get(name).ok_or_else(missing)?;
        Ok((self.files.get(*file).ok_or_else(missing)?, entry))
    }
}

impl TensorSource for SafeTensors {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)> {
        self.tensors
            .get(name)
            .map(|(_, entry)| (entry.shape.clone(), entry.stored))
    }

    fn locate(&self, name: &str, rows: Option<Range<usize>>) -> Result<Option<Located<'_>>, WeightsError> {
        let (file, entry) = self.entry(name)?;
        let what = (entry.stored, entry.shape.as_slice());
        Located::new(file, name, what, (entry.offset, entry.len), rows).map(Some)
    }
}
