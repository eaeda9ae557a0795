/// Why a file is not a usable picture.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file is larger than the configured limit.
    #[error("the picture's file has {bytes} bytes; at most {max} are allowed")]
    TooManyBytes {
        /// Size of the file.
        bytes: usize,
        /// The configured limit.
        max: usize,
    },
    /// The picture is larger than the configured limit; found out before decoding it.
    #[error("the picture has {width}x{height} pixels; at most {max} are allowed in all")]
    TooManyPixels {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The configured limit.
        max: u64,
    },
    /// The file is of a format that is not read here.
    #[error("the file is {found}; send a PNG, JPEG or WebP picture")]
    Unsupported {
        /// What the first bytes say.
        found: &'static str,
    },
    /// The file is damaged.
    #[error("the picture cannot be read: {0}")]
    Broken(image::ImageError),
    /// The picture has no pixels.
    #[error("the picture is empty; send one with at least one pixel")]
    Empty,
}
