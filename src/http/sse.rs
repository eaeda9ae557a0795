//! A job's events as server-sent events.

use std::time::Duration;

use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::{Bytes, block};
use actix_web::{HttpResponse, HttpResponseBuilder};
use futures_util::{Stream, stream};
use tokio::sync::mpsc;

use super::error::ApiError;
use super::wire;
use crate::actors::owner::Owner;
use crate::domain::event::{JobEvent, Numbered};
use crate::domain::job::JobId;

const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";

/// What a stream is made of.
pub struct Source {
    /// The job.
    pub id: JobId,
    /// Its events.
    pub events: mpsc::Receiver<Numbered>,
    /// Whoever goes away with the stream and takes the job along.
    pub owner: Option<Owner>,
    /// Time between keep-alive comments.
    pub keep_alive: Duration,
}

/// Sends the events until the last one, then `[DONE]`.
pub fn respond(mut answer: HttpResponseBuilder, source: Source) -> HttpResponse {
    answer
        .content_type("text/event-stream; charset=utf-8")
        .insert_header((CACHE_CONTROL, "no-cache"))
        // Proxies that buffer would hold progress back.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(frames(source))
}

fn frames(source: Source) -> impl Stream<Item = Result<Bytes, ApiError>> {
    stream::unfold(Some(source), |source| async {
        let mut source = source?;
        let received = tokio::time::timeout(source.keep_alive, source.events.recv()).await;
        match received {
            Err(_) => Some((Ok(Bytes::from_static(KEEP_ALIVE)), Some(source))),
            // This reader had seen the last event already.
            Ok(None) => Some((Ok(Bytes::from_static(DONE)), None)),
            Ok(Some(numbered)) => {
                let last = numbered.event.is_final();
                if let (true, Some(owner)) = (last, source.owner.as_mut()) {
                    owner.release();
                }
                let frame = frame(source.id, numbered).await;
                Some((frame, (!last).then_some(source)))
            }
        }
    })
}

async fn frame(id: JobId, numbered: Numbered) -> Result<Bytes, ApiError> {
    match &numbered.event {
        // Base64 of whole pictures is too much for a thread that answers others.
        JobEvent::Completed(_) => Ok(block(move || text(id, &numbered)).await?),
        _ => Ok(text(id, &numbered)),
    }
}

fn text(id: JobId, numbered: &Numbered) -> Bytes {
    let (name, data) = wire::event(id, &numbered.event);
    let mut text = format!("id: {}\nevent: {name}\ndata: {data}\n\n", numbered.number).into_bytes();
    if numbered.event.is_final() {
        text.extend_from_slice(DONE);
    }
    text.into()
}
