//! One file's transfer into the cache, going on where an earlier one ended.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::StatusCode;

use super::HubError;
use super::remote::{FileInfo, Remote};

/// Tries in a row that bring nothing.
const TRIES: u32 = 5;
const PIECE: usize = 256 << 10;

/// Fetches a file's content to `blob` unless it is there. `on_bytes` hears the bytes that this file has so far.
///
/// # Errors
/// The hub cannot be reached, keeps breaking off, or the disk refuses.
pub(super) fn fetch(
    remote: &Remote,
    info: &FileInfo,
    blob: &Path,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), HubError> {
    if blob.exists() {
        on_bytes(info.size);
        return Ok(());
    }
    let folder = blob.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder).map_err(cache(folder))?;
    let part = with_ending(blob, "incomplete");
    // Another worker may be fetching the same file: wait for it, then look again.
    let lock_path = with_ending(blob, "lock");
    let lock = File::create(&lock_path).map_err(cache(&lock_path))?;
    lock.lock().map_err(cache(&lock_path))?;
    if !blob.exists() {
        transfer(remote, info, &part, on_bytes)?;
        fs::rename(&part, blob).map_err(cache(blob))?;
    }
    // Whoever waits for the lock holds the removed file open and finds the content there.
    let _gone_already = fs::remove_file(&lock_path);
    on_bytes(info.size);
    Ok(())
}

fn transfer(remote: &Remote, info: &FileInfo, part: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<(), HubError> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(part)
        .map_err(cache(part))?;
    let mut at = file.seek(SeekFrom::End(0)).map_err(cache(part))?;
    let (mut last, mut stalled) = (None, 0);
    while stalled < TRIES {
        if at > info.size {
            at = 0;
        }
        if at == info.size && (at > 0 || info.size == 0) {
            file.set_len(at).map_err(cache(part))?;
            return Ok(());
        }
        if last.is_some() {
            thread::sleep(remote.first_wait * (1 << stalled));
        }
        let before = at;
        match piece(remote, info, &mut file, part, &mut at, on_bytes) {
            Ok(()) => {}
            Err(error @ HubError::Cache { .. }) => return Err(error),
            Err(error) => last = Some(error),
        }
        stalled = if at > before { 0 } else { stalled + 1 };
        tracing::debug!(url = info.url, from = before, to = at, "transfer ended");
    }
    if at == info.size {
        return Ok(());
    }
    match last {
        Some(error @ HubError::Unreachable { .. }) if at == 0 => Err(error),
        last => Err(HubError::BrokenOff {
            url: info.url.clone(),
            at,
            size: info.size,
            reason: last.map_or_else(|| "the connection was closed".to_owned(), |error| error.to_string()),
        }),
    }
}

/// One answer of the server, from byte `at` on as far as it comes.
fn piece(
    remote: &Remote,
    info: &FileInfo,
    file: &mut File,
    part: &Path,
    at: &mut u64,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), HubError> {
    let response = remote.open(&info.url, *at)?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if starts_at(&response, *at) => {}
        // The server does not know ranges: from the start.
        StatusCode::OK => *at = 0,
        StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
            *at = 0;
            file.set_len(0).map_err(cache(part))?;
            return Ok(());
        }
        other => {
            return Err(HubError::Answer {
                url: info.url.clone(),
                found: other.to_string(),
            });
        }
    }
    file.set_len(*at).map_err(cache(part))?;
    file.seek(SeekFrom::Start(*at)).map_err(cache(part))?;
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0_u8; PIECE];
    let mut told = Instant::now();
    loop {
        let count = body.read(&mut buffer).map_err(|error| HubError::Unreachable {
            url: info.url.clone(),
            reason: error.to_string(),
        })?;
        if count == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..count]).map_err(cache(part))?;
        *at += count as u64;
        if told.elapsed() > Duration::from_millis(200) {
            on_bytes((*at).min(info.size));
            told = Instant::now();
        }
    }
}

/// Whether `Content-Range: bytes N-M/SIZE` starts where it was asked to.
fn starts_at(response: &ureq::http::Response<ureq::Body>, at: u64) -> bool {
    let range = response
        .headers()
        .get("content-range")
        .and_then(|value| value.to_str().ok());
    let start = range.and_then(|text| text.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
    start == Some(at)
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// Makes a system's error one of the cache at `path`.
pub(super) fn cache(path: &Path) -> impl Fn(std::io::Error) -> HubError + '_ {
    move |source| HubError::Cache {
        path: path.to_owned(),
        source,
    }
}
