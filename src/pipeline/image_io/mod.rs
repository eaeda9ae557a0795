//! Pictures in and out: files to pixels within limits, pixels to what a VAE wants and back, inpaint masks, files again.
//!
//! Everything that changes pixels follows Pillow and diffusers to the bit, so that the same picture and mask give the
//! same latents there and here.

mod decode;
mod encode;
mod error;
mod exif;
mod mask;
mod pixels;
mod resample;

pub use decode::{decode_alpha_mask, decode_image, decode_mask};
pub use encode::{DEFAULT_JPEG_QUALITY, encode, read_parameters};
pub use error::ImageError;
pub use mask::{BinaryMask, paste_back};
pub use pixels::{from_model, to_model};
pub use resample::{resize_luma, resize_rgb};
