//! A job's events as OpenAI's clients read them.

use std::collections::VecDeque;
use std::time::SystemTime;

use actix_web::web::block;
use actix_web_lab::sse::{Data, Event};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::error::ApiError;
use super::call::Look;
use super::error::OpenAiError;
use super::{unix, usage};
use crate::actors::owner::Owner;
use crate::domain::event::{Generation, JobEvent, Numbered};
use crate::domain::picture::{EncodedImage, Size};

/// A stream that is being sent.
pub struct Stream {
    events: mpsc::Receiver<Numbered>,
    owner: Option<Owner>,
    look: Look,
    size: Size,
    partials_sent: u32,
    /// Events that wait to be sent.
    ready: VecDeque<Event>,
    over: bool,
}

impl Stream {
    /// Of a job's events; the job is cancelled when the stream is dropped before its end.
    pub fn new(events: mpsc::Receiver<Numbered>, owner: Option<Owner>, look: Look, size: Size) -> Self {
        Self {
            events,
            owner,
            look,
            size,
            partials_sent: 0,
            ready: VecDeque::new(),
            over: false,
        }
    }

    /// The events one by one.
    pub fn events(self) -> impl stream::Stream<Item = Result<Event, ApiError>> {
        stream::unfold(self, |mut stream| async move {
            let event = stream.next().await?;
            Some((Ok(event), stream))
        })
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            match self.events.recv().await {
                None => self.over = true,
                Some(numbered) => self.take(numbered.event).await,
            }
        }
    }

    async fn take(&mut self, event: JobEvent) {
        if event.is_final() {
            if let Some(owner) = &mut self.owner {
                owner.release();
            }
            self.over = true;
        }
        match event {
            JobEvent::Queued { .. } | JobEvent::Started | JobEvent::Progress { .. } => {}
            JobEvent::Preview { image, .. } => self.partial(&image),
            JobEvent::Completed(generation) => {
                let (look, size) = (self.look, self.size);
                match block(move || completed(&generation, look, size)).await {
                    Ok(Ok(events)) => self.ready.extend(events),
                    Ok(Err(error)) => self.ready.push_back(failure(&error)),
                    Err(error) => self.ready.push_back(failure(&error.into())),
                }
            }
            JobEvent::Failed(error) => self.ready.push_back(failure(&ApiError::from(&error))),
            JobEvent::Cancelled => self.ready.push_back(failure(&ApiError::Cancelled)),
        }
    }

    fn partial(&mut self, image: &EncodedImage) {
        if self.partials_sent >= self.look.partials {
            return;
        }
        let mut data = picture(&image.bytes, image.format.name(), self.size);
        data["partial_image_index"] = self.partials_sent.into();
        self.partials_sent += 1;
        self.ready.push_back(event(&name(self.look, "partial_image"), data));
    }
}

fn completed(generation: &Generation, look: Look, size: Size) -> Result<Vec<Event>, ApiError> {
    let one = |image: &EncodedImage| {
        let mut data = picture(&look.file(image)?, look.format.name(), size);
        data["usage"] = usage();
        data["seed"] = image.seed.into();
        Ok(event(&name(look, "completed"), data))
    };
    generation.images.iter().map(one).collect()
}

fn name(look: Look, event: &str) -> String {
    let family = if look.edit { "image_edit" } else { "image_generation" };
    format!("{family}.{event}")
}

fn picture(bytes: &[u8], format: &str, size: Size) -> Value {
    json!({
        "b64_json": STANDARD.encode(bytes),
        "created_at": unix(SystemTime::now()),
        "size": size.to_string(),
        "output_format": format,
    })
}

fn failure(error: &ApiError) -> Event {
    event("error", OpenAiError::json(error))
}

fn event(name: &str, mut data: Value) -> Event {
    data["type"] = name.into();
    Data::new(data.to_string()).event(name).into()
}
