//! The hub's HTTP side: what a repository has, and where one of its files lies.

use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::{HubConfig, HubError};

/// Talks to the hub.
pub(super) struct Remote {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    /// Wait before a broken transfer goes on.
    pub first_wait: Duration,
}

/// What the hub says of a repository at a revision.
#[derive(Debug, Deserialize)]
pub(super) struct RepoInfo {
    /// The commit.
    pub sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

/// What the hub says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileInfo {
    /// Name of its content in the cache.
    pub etag: String,
    /// Bytes.
    pub size: u64,
    /// Where to get it.
    pub url: String,
    /// The commit it belongs to, if the hub says so.
    pub commit: Option<String>,
}

const MOST_REDIRECTS: usize = 5;

impl RepoInfo {
    /// Names of the files.
    pub fn files(self) -> Vec<String> {
        self.siblings.into_iter().map(|sibling| sibling.rfilename).collect()
    }
}

impl Remote {
    pub fn new(config: &HubConfig) -> Self {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("sd-worker/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self {
            agent,
            endpoint: config.endpoint.clone(),
            token: config.token.clone(),
            first_wait: config.first_wait,
        }
    }

    /// The commit and the files of a repository.
    pub fn repo(&self, id: &str, revision: &str) -> Result<RepoInfo, HubError> {
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, escape(revision));
        let mut response = self.send("GET", &url, None)?;
        self.check(&response, id, &format!("repository {id} at revision {revision}"), &url)?;
        response.body_mut().read_json().map_err(|error| HubError::Answer {
            url,
            found: format!("no description of a repository: {error}"),
        })
    }

    /// Size, address and content name of one file.
    pub fn file(&self, id: &str, revision: &str, file: &str) -> Result<FileInfo, HubError> {
        let what = format!("file {file} in {id} at revision {revision}");
        let mut url = format!(
            "{}/{id}/resolve/{}/{}",
            self.endpoint,
            escape(revision),
            escape_path(file)
        );
        for _ in 0..MOST_REDIRECTS {
            let response = self.send("HEAD", &url, None)?;
            let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
            let target = header("location").filter(|_| response.status().is_redirection());
            let etag = header("x-linked-etag").or_else(|| header("etag"));
            let size = header("x-linked-size")
                .or_else(|| header("content-length"))
                .and_then(|s| s.parse().ok());
            match (target, etag) {
                // A renamed repository: the answer is at another address of the hub.
                (Some(target), None) => url = resolve(&url, &target)?,
                (Some(target), Some(_)) if target.starts_with('/') => url = resolve(&url, &target)?,
                (target, Some(etag)) => {
                    if target.is_none() {
                        self.check(&response, id, &what, &url)?;
                    }
                    let size = size.ok_or_else(|| no_header(&url, "content-length"))?;
                    let etag = clean(&etag).ok_or_else(|| no_header(&url, "usable etag"))?;
                    let to = target.unwrap_or(url);
                    return Ok(FileInfo {
                        etag,
                        size,
                        url: to,
                        commit: header("x-repo-commit"),
                    });
                }
                (None, None) => {
                    self.check(&response, id, &what, &url)?;
                    return Err(no_header(&url, "etag"));
                }
            }
        }
        Err(HubError::Answer {
            url,
            found: "too many redirects".to_owned(),
        })
    }

    /// Starts a transfer at byte `from`.
    pub fn open(&self, url: &str, from: u64) -> Result<Response<Body>, HubError> {
        let mut url = url.to_owned();
        for _ in 0..MOST_REDIRECTS {
            let response = self.send("GET", &url, (from > 0).then_some(from))?;
            let target = response.headers().get("location").and_then(|value| value.to_str().ok());
            match target {
                Some(target) if response.status().is_redirection() => url = resolve(&url, target)?,
                _ => return Ok(response),
            }
        }
        Err(HubError::Answer {
            url,
            found: "too many redirects".to_owned(),
        })
    }

    fn send(&self, method: &str, url: &str, from: Option<u64>) -> Result<Response<Body>, HubError> {
        let mut request = if method == "HEAD" {
            self.agent.head(url)
        } else {
            self.agent.get(url)
        };
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        // The token is for the hub alone: the address that a file lies at has its own signature.
        if let Some(token) = self.token.as_ref().filter(|_| host(url) == host(&self.endpoint)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request
            .header("accept-encoding", "identity")
            .call()
            .map_err(|error| HubError::Unreachable {
                url: url.to_owned(),
                reason: error.to_string(),
            })
    }

    fn check(&self, response: &Response<Body>, id: &str, what: &str, url: &str) -> Result<(), HubError> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let code = response
            .headers()
            .get("x-error-code")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let page = format!("{}/{id}", self.endpoint);
        let id = id.to_owned();
        match status {
            _ if matches!(code, "RepoNotFound" | "RevisionNotFound" | "EntryNotFound") => {
                Err(HubError::NotFound { what: what.to_owned() })
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.token.is_none() => Err(HubError::Gated {
                id,
                page,
                endpoint: self.endpoint.clone(),
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(HubError::Denied { id, page }),
            StatusCode::NOT_FOUND => Err(HubError::NotFound { what: what.to_owned() }),
            other => Err(HubError::Answer {
                url: url.to_owned(),
                found: other.to_string(),
            }),
        }
    }
}

/// A content name that is safe as a file name.
fn clean(etag: &str) -> Option<String> {
    let name = etag.trim_start_matches("W/").trim_matches('"');
    let safe = !name.is_empty() && name.len() <= 200 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    safe.then(|| name.to_owned())
}

fn no_header(url: &str, name: &str) -> HubError {
    HubError::Answer {
        url: url.to_owned(),
        found: format!("without {name}"),
    }
}

fn host(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    uri.authority().map(|authority| authority.as_str().to_ascii_lowercase())
}

/// The address that a redirect from `url` means.
fn resolve(url: &str, target: &str) -> Result<String, HubError> {
    if target.starts_with("http://") || target.starts_with("https://") {
        return Ok(target.to_owned());
    }
    let odd = || HubError::Answer {
        url: url.to_owned(),
        found: format!("a redirect to {target}"),
    };
    let uri: Uri = url.parse().map_err(|_| odd())?;
    let (scheme, authority) = (uri.scheme_str().ok_or_else(odd)?, uri.authority().ok_or_else(odd)?);
    if !target.starts_with('/') {
        return Err(odd());
    }
    Ok(format!("{scheme}://{authority}{target}"))
}

/// A revision inside an address: `refs/pr/1` is one segment.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

fn escape_path(path: &str) -> String {
    path.split('/').map(escape).collect::<Vec<_>>().join("/")
}
