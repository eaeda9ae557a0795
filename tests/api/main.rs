//! The HTTP side with a pipeline that only pretends to paint; each worker listens on a free port of its own.
#![allow(clippy::unwrap_used)]

mod support;

mod answers;
mod cancel;
mod disconnect;
mod jobs;
mod overload;
mod recovery;
