//! Model architectures as plain forward passes over [`crate::ops`].
