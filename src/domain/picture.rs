//! Pictures as they come in and go out.

use std::fmt;
use std::str::FromStr;

use image::{GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

/// A decoded input picture: 8-bit RGB, row by row.
#[derive(Clone, PartialEq)]
pub struct InputImage(pub RgbImage);

/// A decoded inpaint mask: white (255) is painted anew, black (0) is kept.
#[derive(Clone, PartialEq)]
pub struct InputMask(pub GrayImage);

impl fmt::Debug for InputImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InputImage({}x{})", self.0.width(), self.0.height())
    }
}

impl fmt::Debug for InputMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InputMask({}x{})", self.0.width(), self.0.height())
    }
}

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Columns, in pixels.
    pub width: u32,
    /// Rows, in pixels.
    pub height: u32,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// A size that is not written as `WIDTHxHEIGHT`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a size; write WIDTHxHEIGHT in pixels, for example 512x768")]
pub struct ParseSizeError(String);

impl FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseSizeError(text.to_owned());
        let (width, height) = text.split_once(['x', 'X']).ok_or_else(wrong)?;
        let side = |s: &str| s.trim().parse::<u32>().map_err(|_| wrong());
        Ok(Self {
            width: side(width)?,
            height: side(height)?,
        })
    }
}

/// File format of the pictures that a job returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// PNG, with the `parameters` text that A1111 and ComfyUI users read.
    #[default]
    Png,
    /// JPEG.
    Jpeg,
    /// WebP, lossless.
    Webp,
}

impl OutputFormat {
    /// Every format, in the order in which they are listed to users.
    pub const ALL: [Self; 3] = [Self::Png, Self::Jpeg, Self::Webp];

    /// The name on the wire: `png`, `jpeg` or `webp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// The media type, such as `image/png`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// An encoded picture, ready to be sent or written to a file.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedImage {
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// Their format.
    pub format: OutputFormat,
    /// Width and height in pixels.
    pub size: Size,
    /// The seed that painted it.
    pub seed: u64,
}

impl fmt::Debug for EncodedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "EncodedImage({} {}, {} bytes, seed {})",
            self.size,
            self.format.name(),
            self.bytes.len(),
            self.seed
        )
    }
}
