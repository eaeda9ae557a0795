//! A job's events as server-sent events.

use std::time::Duration;

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::web::block;
use actix_web::{HttpRequest, HttpResponse, Responder};
use actix_web_lab::sse::{Data, Event, Sse};
use futures_util::{Stream, stream};
use tokio::sync::mpsc;

use super::error::ApiError;
use super::wire;
use crate::actors::owner::Owner;
use crate::domain::event::{JobEvent, Numbered};
use crate::domain::job::JobId;

/// What a stream is made of.
pub struct Source {
    /// The job.
    pub id: JobId,
    /// Its events.
    pub events: mpsc::Receiver<Numbered>,
    /// Whoever goes away with the stream and takes the job along.
    pub owner: Option<Owner>,
}

/// Where a stream stands.
enum Turn {
    Events(Source),
    Done,
}

/// Sends the events until the last one, then `[DONE]`.
pub fn respond(request: &HttpRequest, source: Source, keep_alive: Duration) -> HttpResponse {
    let id = source.id;
    let events = stream::unfold(Some(Turn::Events(source)), |turn| async {
        match turn? {
            Turn::Done => Some((Ok(done()), None)),
            Turn::Events(source) => next(source).await,
        }
    });
    send(request, id, events, keep_alive)
}

/// Sends a stream of events, with comments where nothing happens for a while. Nothing is read from the stream that its
/// reader does not take; when the reader goes, the stream is dropped.
pub fn send(
    request: &HttpRequest,
    id: JobId,
    events: impl Stream<Item = Result<Event, ApiError>> + 'static,
    keep_alive: Duration,
) -> HttpResponse {
    let mut response = Sse::from_stream(events).with_keep_alive(keep_alive).respond_to(request);
    let headers = response.headers_mut();
    // Proxies that buffer would hold progress back.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(HeaderName::from_static("x-job-id"), id);
    }
    response
}

async fn next(mut source: Source) -> Option<(Result<Event, ApiError>, Option<Turn>)> {
    let Some(numbered) = source.events.recv().await else {
        // This reader had seen the last event already.
        return Some((Ok(done()), None));
    };
    let last = numbered.event.is_final();
    if let (true, Some(owner)) = (last, source.owner.as_mut()) {
        owner.release();
    }
    let event = event(source.id, numbered).await;
    let turn = if last { Turn::Done } else { Turn::Events(source) };
    Some((event, Some(turn)))
}

fn done() -> Event {
    Data::new("[DONE]").into()
}

async fn event(id: JobId, numbered: Numbered) -> Result<Event, ApiError> {
    match &numbered.event {
        // Base64 of whole pictures is too much for a thread that answers others.
        JobEvent::Completed(_) => Ok(block(move || data(id, &numbered)).await?),
        _ => Ok(data(id, &numbered)),
    }
}

fn data(id: JobId, numbered: &Numbered) -> Event {
    let (name, data) = wire::event(id, &numbered.event);
    let data = Data::new(data.to_string()).event(name);
    data.id(numbered.number.to_string()).into()
}
