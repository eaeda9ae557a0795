//! How much one request may ask for.

/// Bounds of a request, from the settings; those that no setting changes are constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest width and height of a picture to paint, in pixels.
    pub max_side: u32,
    /// Most pictures of one job.
    pub max_images: u32,
    /// Largest input picture, in bytes of its file.
    pub max_image_bytes: usize,
    /// Largest input picture, in pixels.
    pub max_image_pixels: u64,
}

impl Limits {
    /// Smallest width and height of a picture to paint, in pixels.
    pub const MIN_SIDE: u32 = 64;
    /// Most denoising steps.
    pub const MAX_STEPS: u32 = 150;
    /// Longest prompt, in characters.
    pub const MAX_PROMPT_CHARS: usize = 10_000;
    /// Largest guidance scale.
    pub const MAX_GUIDANCE: f64 = 30.0;
    /// Most CLIP layers to skip.
    pub const MAX_CLIP_SKIP: u32 = 12;
    /// Widest feather of an inpaint mask, in pixels.
    pub const MAX_FEATHER: u32 = 256;
    /// Most LoRAs of one job.
    pub const MAX_LORAS: usize = 16;
    /// Largest absolute strength of a LoRA.
    pub const MAX_LORA_STRENGTH: f64 = 10.0;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_side: 2048,
            max_images: 8,
            max_image_bytes: 32 << 20,
            max_image_pixels: 40_000_000,
        }
    }
}
