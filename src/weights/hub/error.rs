//! Why a model could not be had from the hub.

use std::path::PathBuf;

/// Errors of finding and fetching a model of the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The repository wants its terms accepted, and no token was sent.
    #[error(
        "{id} is gated: accept its terms at {page} with a Hugging Face account, make a read token at \
         {endpoint}/settings/tokens, and start again with HF_TOKEN set to it"
    )]
    Gated {
        /// `owner/name`.
        id: String,
        /// Its page.
        page: String,
        /// The hub.
        endpoint: String,
    },
    /// The repository is gated or private, and the token's account may not read it.
    #[error(
        "the token does not open {id}: accept its terms at {page} with the account that the token belongs to, and \
         give the token the right to read gated repositories"
    )]
    Denied {
        /// `owner/name`.
        id: String,
        /// Its page.
        page: String,
    },
    /// There is no such repository, revision or file, or it is private.
    #[error("the hub has no {what}; check the spelling (if it is private, set HF_TOKEN)")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The network may not be used and the cache lacks something.
    #[error(
        "HF_HUB_OFFLINE is set and {what} is not in the cache {}; unset it once, or copy the model there",
        cache.display()
    )]
    Offline {
        /// What is missing.
        what: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// The hub could not be reached, and the cache lacks something.
    #[error("cannot reach {url}: {reason}; check the network, or HF_ENDPOINT if a mirror is meant")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// The hub answered with something else than it should.
    #[error("{url} answered {found}")]
    Answer {
        /// The address.
        url: String,
        /// What came.
        found: String,
    },
    /// A transfer broke off too often.
    #[error("{url} broke off at byte {at} of {size}: {reason}; start again to go on from there")]
    BrokenOff {
        /// The address.
        url: String,
        /// Bytes that are there.
        at: u64,
        /// Bytes that it has.
        size: u64,
        /// The last reason.
        reason: String,
    },
    /// The repository holds no model that can be loaded.
    #[error("{id} holds no model in diffusers' layout; {hint}")]
    NoModel {
        /// `owner/name`.
        id: String,
        /// What to do.
        hint: String,
    },
    /// The repository has only pickles of a part.
    #[error("{id} has {file} only as a pickle, which could run code when read; use a repository with .safetensors")]
    Pickle {
        /// `owner/name`.
        id: String,
        /// The file.
        file: String,
    },
    /// The cache folder cannot be used.
    #[error("the cache {}: {source}", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// No folder for the cache is known.
    #[error("no folder for the cache: set HF_HOME")]
    NoHome,
}
