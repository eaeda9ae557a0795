//! CPU kernels for image models.
