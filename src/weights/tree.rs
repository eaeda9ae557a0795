//! A folder of files, on disk or built into the program.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::WeightsError;
use super::storage::Storage;

/// A folder of files.
#[derive(Clone, Debug)]
pub enum Tree {
    /// On disk.
    Disk(PathBuf),
    /// Built into the program.
    Memory {
        /// Stands for its path in messages.
        name: &'static str,
        /// Path below the folder (with `/`) and content of each file.
        files: &'static [(&'static str, &'static [u8])],
    },
}

impl Tree {
    /// Where `inner` is, for messages.
    pub fn path(&self, inner: &str) -> PathBuf {
        match self {
            Self::Disk(root) => root.join(inner),
            Self::Memory { name, .. } => PathBuf::from(name).join(inner),
        }
    }

    /// Names of the files in a folder below this one, sorted; none if there is no such folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self, folder: &str) -> Result<Vec<String>, WeightsError> {
        let mut names: Vec<String> = match self {
            Self::Disk(root) => {
                let path = root.join(folder);
                let io = |source| WeightsError::Io {
                    path: path.clone(),
                    source,
                };
                match fs::read_dir(&path) {
                    Ok(entries) => entries
                        .map(|entry| Ok(entry.map_err(io)?.file_name().to_string_lossy().into_owned()))
                        .collect::<Result<_, WeightsError>>()?,
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Vec::new(),
                    Err(error) => return Err(io(error)),
                }
            }
            Self::Memory { files, .. } => files
                .iter()
                .filter_map(|(path, _)| {
                    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
                    (dir == folder).then(|| name.to_owned())
                })
                .collect(),
        };
        names.sort_unstable();
        Ok(names)
    }

    /// The content of a file; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, inner: &str) -> Result<Option<Vec<u8>>, WeightsError> {
        match self {
            Self::Disk(root) => {
                let path = root.join(inner);
                match fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
                    Err(source) => Err(WeightsError::Io { path, source }),
                }
            }
            Self::Memory { files, .. } => Ok(files
                .iter()
                .find(|(path, _)| *path == inner)
                .map(|(_, bytes)| bytes.to_vec())),
        }
    }

    /// The text of a file; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read or is no text.
    pub fn text(&self, inner: &str) -> Result<Option<String>, WeightsError> {
        let Some(bytes) = self.read(inner)? else {
            return Ok(None);
        };
        let text =
            String::from_utf8(bytes).map_err(|_| WeightsError::damaged(&self.path(inner), "it is no UTF-8 text"))?;
        Ok(Some(text))
    }

    /// A file of tensors.
    ///
    /// # Errors
    /// It is not there or cannot be read.
    pub(super) fn storage(&self, inner: &str) -> Result<Storage, WeightsError> {
        match self {
            Self::Disk(root) => Storage::open(&root.join(inner)),
            Self::Memory { name, files } => {
                let found = files.iter().find(|(path, _)| *path == inner);
                let (_, bytes) = found.ok_or_else(|| WeightsError::NoPart {
                    place: PathBuf::from(name),
                    what: inner.to_owned(),
                })?;
                Ok(Storage::memory(&self.path(inner).to_string_lossy(), bytes))
            }
        }
    }
}
