//! Stable Diffusion 1.x, 2.x and XL: text to picture, picture to picture, inpainting.

mod guidance;
mod latents;
