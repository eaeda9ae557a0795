//! The HTTP side with a pipeline that only pretends to paint; each worker listens on a free port of its own.
#![allow(clippy::unwrap_used)]

mod support;

mod answers;
mod bad_input;
mod cancel;
mod description;
mod disconnect;
mod drain;
mod families;
mod hive;
mod idempotency;
mod jobs;
mod openai;
mod overload;
mod pictures;
mod protocol;
mod readers;
mod recovery;
mod sdapi;
mod status;
