//! Models of the Hugging Face hub: from `owner/name[@revision]` to files on disk.
//!
//! The cache has the layout of the hub's own tools (addresses by the `hf-hub` crate), so what one has loaded the other
//! finds. Only the files that a model needs are fetched, safetensors only, and a broken transfer goes on where it ended.

mod config;
mod download;
mod error;
mod plan;
mod remote;
mod snapshot;

pub use config::HubConfig;
pub use error::HubError;
pub use snapshot::Hub;

/// How far a download has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file that is being fetched.
    pub file: &'a str,
    /// Bytes of the whole model that are there.
    pub done: u64,
    /// Bytes of the whole model.
    pub total: u64,
}

/// Who looks on; called a few times a second.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) + 'a;
