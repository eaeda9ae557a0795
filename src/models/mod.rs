//! Plain forward passes over [`crate::ops`], one file or folder a model, under the names that diffusers gives their parts.

pub mod flux;
pub mod t5;
