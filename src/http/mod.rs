//! The HTTP side: turns bodies into valid requests, hands them to the jobs actor, relays what happens. Knows no candle.
//!
//! - [`routes`]: which path leads where; [`state`]: what every handler can read; [`error`]: every answer that is no success.
//! - `fields`, `dto`, `picture`, `intake`: from a body to a request, off the HTTP threads.
//! - `accept`, `paint`, `jobs`, `sse`, `wire`: from a job to an answer.
//! - `openai`, `sdapi`: the same jobs as other tools ask for them.
//! - `health`, `status`, `capabilities`, `metrics`, `pages`: what is not a job.

mod accept;
pub mod auth;
mod body;
mod capabilities;
mod dto;
pub mod error;
mod fields;
mod health;
mod intake;
mod jobs;
mod metrics;
mod openai;
mod pages;
mod paint;
mod picture;
pub mod request_id;
pub mod routes;
mod sdapi;
mod sse;
pub mod state;
mod status;
mod wire;
