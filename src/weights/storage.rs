//! The bytes that tensors lie in: a file read at positions, or bytes built into the program.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use super::WeightsError;

/// Bytes that are read by position, by several threads at a time.
#[derive(Debug)]
pub struct Storage {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    File { file: File, len: u64 },
    Memory(&'static [u8]),
}

impl Storage {
    /// Opens a file.
    ///
    /// # Errors
    /// It is not there, is no file, or may not be read.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(WeightsError::damaged(path, "this is no file"));
        }
        Ok(Self {
            path: path.to_owned(),
            bytes: Bytes::File { file, len: meta.len() },
        })
    }

    /// Bytes in memory; `name` stands for the path in messages.
    #[must_use]
    pub fn memory(name: &str, bytes: &'static [u8]) -> Self {
        Self {
            path: PathBuf::from(name),
            bytes: Bytes::Memory(bytes),
        }
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.bytes {
            Bytes::File { len, .. } => *len,
            Bytes::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// The file ends before, or cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), WeightsError> {
        match &self.bytes {
            Bytes::File { file, .. } => file.read_exact_at(buffer, offset).map_err(|source| WeightsError::Io {
                path: self.path.clone(),
                source,
            }),
            Bytes::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(buffer.len());
                let found = bytes
                    .get(start..end)
                    .ok_or_else(|| WeightsError::damaged(&self.path, "it ends too early"))?;
                buffer.copy_from_slice(found);
                Ok(())
            }
        }
    }
}

/// Threads worth using for reading and converting.
pub(super) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(8)
}
