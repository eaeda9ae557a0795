//! What the worker talks about: requests, events, pictures and model descriptions. Knows no actix and no candle.

pub mod draft;
pub mod event;
pub mod job;
pub mod limits;
pub mod load;
pub mod model;
pub mod picture;
pub mod request;
pub mod sampling;
