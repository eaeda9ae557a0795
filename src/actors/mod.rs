//! Who does what, on which thread; they talk by messages only.
//!
//! - [`jobs`]: the jobs actor on the main actix system: queue, table of jobs, readers of each job. Never blocks.
//! - [`model`]: the model actor on an OS thread of its own: built there, sole owner of the pipeline, one job at a time.
//! - [`hive`]: a thread that reports to the hive and may wait for it as long as it likes.
//!
//! Two [`tokio::sync::watch`] channels carry state outwards: the model's ([`messages::ModelState`]) and the queue's
//! ([`messages::JobsView`]). Whoever wants to know reads the latest value and never waits for an actor.

pub mod hive;
pub mod jobs;
pub mod messages;
pub mod model;
pub mod owner;
mod reader;
pub mod state;
mod table;
