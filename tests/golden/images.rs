//! Pictures as Pillow and diffusers' `VaeImageProcessor` treat them, to the bit; recipe:
//! `tests/fixtures/images/make_images.py`.

use image::{GrayImage, Luma, Rgb, RgbImage, imageops};
use sd_worker::domain::limits::Limits;
use sd_worker::pipeline::image_io::{BinaryMask, decode_image, from_model, resize_luma, resize_rgb};

const SIZES: [(u32, u32); 9] = [
    (64, 48),
    (16, 16),
    (37, 20),
    (100, 53),
    (8, 120),
    (1, 1),
    (300, 7),
    (36, 52),
    (30, 20),
];

fn source() -> RgbImage {
    RgbImage::from_fn(37, 53, |x, y| {
        let checker = if (x / 4 + y / 5) % 2 == 1 { 255 } else { 0 };
        Rgb([(x * x * 3 + y * 7) as u8, (x * 11 + y * y * 5) as u8, checker])
    })
}

fn grey() -> GrayImage {
    GrayImage::from_fn(37, 53, |x, y| {
        let (dx, dy) = (i64::from(x) - 18, i64::from(y) - 26);
        Luma([if dx * dx + dy * dy < 150 {
            255
        } else {
            ((x * 3 + y) % 90) as u8
        }])
    })
}

#[test]
fn resizing_is_pillows_lanczos() {
    let mut expected = include_bytes!("../fixtures/images/resized.u8").as_slice();
    let mut take = |n: usize| {
        let (head, rest) = expected.split_at(n);
        expected = rest;
        head
    };
    for (w, h) in SIZES {
        let pixels = (w * h) as usize;
        assert_eq!(resize_rgb(&source(), w, h).as_raw(), take(3 * pixels), "{w}x{h}");
        assert_eq!(resize_luma(&grey(), w, h).as_raw(), take(pixels), "{w}x{h}");
    }
    assert!(expected.is_empty());
}

#[test]
fn masks_are_split_and_shrunk_as_diffusers_does() {
    let mut expected = include_bytes!("../fixtures/images/masks.u8").as_slice();
    for (w, h) in [(64, 48), (40, 80)] {
        let mask = BinaryMask::new(&grey(), w, h);
        for values in [mask.values(), mask.latent_values(8)] {
            let (head, rest) = expected.split_at(values.len());
            expected = rest;
            let values: Vec<u8> = values.into_iter().map(|v| v as u8).collect();
            assert_eq!(values, head, "{w}x{h}");
        }
    }
    assert!(expected.is_empty());
}

#[test]
fn values_become_pixels_as_in_diffusers() {
    let expected = include_bytes!("../fixtures/images/rounded.u8");
    // torch.linspace in f32: from both ends to the middle, fused.
    let n = 3000;
    let step = 2.2f32 / (n - 1) as f32;
    let values: Vec<f32> = (0..n)
        .map(|i| {
            if i < n / 2 {
                step.mul_add(i as f32, -1.1)
            } else {
                (-step).mul_add((n - 1 - i) as f32, 1.1)
            }
        })
        .collect();
    assert_eq!(from_model(&values, 1, 1000).as_raw(), expected);
}

#[test]
fn the_exif_orientation_is_applied() {
    let bytes = include_bytes!("../fixtures/images/turned.webp");
    let image = decode_image(bytes, &Limits::default()).unwrap().0;
    assert_eq!(image, imageops::rotate90(&source()));
}
