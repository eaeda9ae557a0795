//! Latents of one picture between host and device.
//!
//! On the host they are `f32` planes, `(C, H, W)`: the order in which torch draws noise, so that each number of the noise
//! lands where diffusers puts it. On the device they are NHWC in the compute type.

use candle_core::{DType, Device, Result, Tensor};

use crate::domain::picture::Size;

/// Shape of one picture's latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl LatentShape {
    /// Of a picture whose VAE shrinks it by `factor`.
    pub fn of(size: Size, factor: usize, channels: usize) -> Self {
        Self {
            channels,
            height: size.height as usize / factor,
            width: size.width as usize / factor,
        }
    }

    /// Numbers of one plane.
    pub fn plane(self) -> usize {
        self.height * self.width
    }

    /// Numbers of all planes.
    pub fn len(self) -> usize {
        self.channels * self.plane()
    }

    /// Planes `(C, H, W)`, of which there may be more than `channels`, to `(1, H, W, C)` on the device.
    ///
    /// # Errors
    /// The device refused.
    pub fn to_device(self, planes: &[f32], device: &Device, dtype: DType) -> Result<Tensor> {
        let channels = planes.len() / self.plane().max(1);
        let mut pixels = vec![0.0; planes.len()];
        for (c, plane) in planes.chunks_exact(self.plane()).enumerate() {
            for (pixel, value) in plane.iter().enumerate() {
                pixels[pixel * channels + c] = *value;
            }
        }
        Tensor::from_vec(pixels, (1, self.height, self.width, channels), &Device::Cpu)?
            .to_dtype(dtype)?
            .to_device(device)
    }
}

/// `(1, H, W, C)` from the device to planes `(C, H, W)`.
///
/// # Errors
/// The device refused.
pub fn to_planes(latents: &Tensor) -> Result<Vec<f32>> {
    let (_, height, width, channels) = latents.dims4()?;
    let pixels: Vec<f32> = latents
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()?;
    let plane = height * width;
    let mut planes = vec![0.0; pixels.len()];
    for (pixel, values) in pixels.chunks_exact(channels).enumerate() {
        for (c, value) in values.iter().enumerate() {
            planes[c * plane + pixel] = *value;
        }
    }
    Ok(planes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_become_pixels_and_come_back() {
        let size = Size { width: 24, height: 16 };
        let shape = LatentShape::of(size, 8, 4);
        assert_eq!((shape.plane(), shape.len()), (6, 24));
        let planes: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let tensor = shape.to_device(&planes, &Device::Cpu, DType::F32).unwrap();
        assert_eq!(tensor.dims(), [1, 2, 3, 4]);
        let pixels: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(pixels[..5], [0.0, 6.0, 12.0, 18.0, 1.0]);
        assert_eq!(to_planes(&tensor).unwrap(), planes);
    }
}
