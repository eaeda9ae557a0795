//! Reading server-sent events.

use std::io::{BufRead, BufReader};

use serde_json::Value;
use ureq::http::Response;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `id:`
    pub id: u64,
    /// `event:`
    pub name: String,
    /// `data:`
    pub data: Value,
}

/// A stream that is being read; dropping it closes the connection.
pub struct EventStream {
    /// The headers it came with.
    pub headers: ureq::http::HeaderMap,
    lines: BufReader<ureq::BodyReader<'static>>,
    /// Whether `[DONE]` was seen.
    pub done: bool,
}

impl EventStream {
    pub fn new(response: Response<ureq::Body>) -> Self {
        let (head, body) = response.into_parts();
        assert_eq!(head.status.as_u16(), 200);
        Self {
            headers: head.headers,
            lines: BufReader::new(body.into_reader()),
            done: false,
        }
    }

    /// The next event; `None` after `[DONE]` and the end.
    pub fn next(&mut self) -> Option<Event> {
        let mut event = Event {
            id: 0,
            name: String::new(),
            data: Value::Null,
        };
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                assert!(self.done, "the stream ended without [DONE]");
                return None;
            }
            let line = line.trim_end();
            if let Some(id) = line.strip_prefix("id: ") {
                event.id = id.parse().unwrap();
            } else if let Some(name) = line.strip_prefix("event: ") {
                name.clone_into(&mut event.name);
            } else if line == "data: [DONE]" {
                self.done = true;
            } else if let Some(data) = line.strip_prefix("data: ") {
                assert!(!self.done, "something follows [DONE]");
                event.data = serde_json::from_str(data).unwrap();
            } else if line.is_empty() && !event.name.is_empty() {
                assert_eq!(event.data["type"], event.name.as_str());
                return Some(event);
            }
        }
    }

    /// Reads until an event of this name.
    pub fn until(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().unwrap_or_else(|| panic!("no event {name}"));
            if event.name == name {
                return event;
            }
        }
    }

    /// Reads to the end.
    pub fn rest(mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

/// The names of events.
pub fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}
