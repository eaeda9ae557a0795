//! A small HTTP server that speaks the hub's paths.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The commit that every revision means.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it behaves.
#[derive(Default)]
pub struct Behaviour {
    /// Files by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Further repositories, whose files nothing else here is about; `None` is gated.
    pub others: BTreeMap<&'static str, Option<BTreeMap<String, Vec<u8>>>>,
    /// Large files are redirected to another address, as the hub does.
    pub redirect: bool,
    /// The repository is gated: this token opens it.
    pub gated_for: Option<&'static str>,
    /// Each transfer breaks off after so many bytes.
    pub break_after: Option<usize>,
    /// No transfer comes beyond this byte.
    pub stop_at: Option<usize>,
    /// Ranges are ignored.
    pub no_ranges: bool,
}

/// A running server of the repository `owner/model`; it ends with the test process.
pub struct HubServer {
    pub endpoint: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl HubServer {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (behaviour, seen) = (Arc::new(behaviour), log.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (behaviour, seen) = (behaviour.clone(), seen.clone());
                thread::spawn(move || answer(&stream, &behaviour, &seen));
            }
        });
        Self { endpoint, log }
    }

    /// The requests so far: `METHOD PATH [range]`, with `+token` if one came along.
    pub fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

struct Request {
    method: String,
    path: String,
    range: Option<usize>,
    token: Option<String>,
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut range, mut token) = (None, None);
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "range" => range = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            "authorization" => token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    Some(Request {
        method,
        path,
        range,
        token,
    })
}

fn answer(stream: &TcpStream, behaviour: &Behaviour, seen: &Mutex<Vec<String>>) {
    let Some(request) = read_request(stream) else { return };
    let mut line = format!("{} {}", request.method, request.path);
    if let Some(from) = request.range {
        line.push_str(&format!(" [{from}-]"));
    }
    if request.token.is_some() {
        line.push_str(" +token");
    }
    seen.lock().unwrap().push(line);
    let path = request.path.clone();
    if let Some(name) = path.strip_prefix("/cdn/") {
        return send_file(stream, &request, behaviour, name);
    }
    if behaviour
        .gated_for
        .is_some_and(|token| request.token.as_deref() != Some(token))
    {
        let status = if request.token.is_some() {
            "403 Forbidden"
        } else {
            "401 Unauthorized"
        };
        return respond(stream, &request, status, "X-Error-Code: GatedRepo\r\n", b"gated");
    }
    if let Some((id, rest)) = behaviour.others.iter().find(|(id, _)| path.contains(*id)) {
        return answer_other(stream, &request, id, rest.as_ref());
    }
    if let Some(revision) = path.strip_prefix("/api/models/owner/model/revision/") {
        if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return respond(
                stream,
                &request,
                "404 Not Found",
                "X-Error-Code: RevisionNotFound\r\n",
                b"",
            );
        }
        return list(stream, &request, "owner/model", &behaviour.files);
    }
    let file = path
        .strip_prefix("/owner/model/resolve/")
        .and_then(|rest| rest.split_once('/'));
    match file.and_then(|(_, name)| Some((name, behaviour.files.get(name)?))) {
        Some((name, bytes)) if behaviour.redirect && name.ends_with(".safetensors") => {
            let head = format!(
                "X-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\nLocation: {}/cdn/{name}\r\n",
                etag(name),
                bytes.len(),
                format_args!("http://localhost:{}", stream.local_addr().unwrap().port()),
            );
            respond(stream, &request, "302 Found", &head, b"elsewhere");
        }
        Some((name, _)) => send_file(stream, &request, behaviour, name),
        None if path.starts_with("/owner/model/") => {
            respond(
                stream,
                &request,
                "404 Not Found",
                "X-Error-Code: EntryNotFound\r\n",
                b"",
            );
        }
        None => respond(
            stream,
            &request,
            "401 Unauthorized",
            "X-Error-Code: RepoNotFound\r\n",
            b"",
        ),
    }
}

fn list(stream: &TcpStream, request: &Request, id: &str, files: &BTreeMap<String, Vec<u8>>) {
    let names: Vec<_> = files
        .keys()
        .map(|name| format!(r#"{{"rfilename":"{name}"}}"#))
        .collect();
    let body = format!(r#"{{"id":"{id}","sha":"{COMMIT}","siblings":[{}]}}"#, names.join(","));
    let head = "Content-Type: application/json\r\n";
    respond(stream, request, "200 OK", head, body.as_bytes());
}

fn answer_other(stream: &TcpStream, request: &Request, id: &str, files: Option<&BTreeMap<String, Vec<u8>>>) {
    let Some(files) = files else {
        let head = "X-Error-Code: GatedRepo\r\n";
        return respond(stream, request, "401 Unauthorized", head, b"gated");
    };
    if request.path.starts_with("/api/") {
        return list(stream, request, id, files);
    }
    let name = request.path.split(&format!("{id}/resolve/")).nth(1);
    match name.and_then(|rest| Some((rest.split_once('/')?.1, files.get(rest.split_once('/')?.1)?))) {
        Some((name, bytes)) => {
            let head = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{}\"\r\n", etag(name));
            respond(stream, request, "200 OK", &head, bytes);
        }
        None => {
            let head = "X-Error-Code: EntryNotFound\r\n";
            respond(stream, request, "404 Not Found", head, b"");
        }
    }
}

fn etag(name: &str) -> String {
    format!("etag-{}", name.replace(['/', '.', '_'], "-"))
}

fn send_file(stream: &TcpStream, request: &Request, behaviour: &Behaviour, name: &str) {
    let bytes = &behaviour.files[name];
    let from = request.range.filter(|_| !behaviour.no_ranges).unwrap_or(0);
    let head = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{}\"\r\n", etag(name));
    if from >= bytes.len() && from > 0 {
        return respond(stream, request, "416 Range Not Satisfiable", &head, b"");
    }
    let rest = &bytes[from..];
    let (status, range) = match from {
        0 => ("200 OK", String::new()),
        _ => (
            "206 Partial Content",
            format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len()),
        ),
    };
    let sent = behaviour.break_after.map_or(rest.len(), |most| most.min(rest.len()));
    let sent = behaviour
        .stop_at
        .map_or(sent, |stop| stop.saturating_sub(from).min(sent));
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{head}{range}\r\n",
        rest.len()
    );
    let mut stream = stream;
    // A client that has gone is what some tests are about.
    let _gone = stream.write_all(head.as_bytes());
    if request.method != "HEAD" {
        let _gone = stream.write_all(&rest[..sent]);
    }
}

fn respond(mut stream: &TcpStream, request: &Request, status: &str, headers: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    let _gone = stream.write_all(head.as_bytes());
    if request.method != "HEAD" {
        let _gone = stream.write_all(body);
    }
}
