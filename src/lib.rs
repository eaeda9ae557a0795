//! sd-worker.
