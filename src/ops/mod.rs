//! The few operations that models are made of. Activations are NHWC (`B, H, W, C`) or tokens (`B, N, C`).
