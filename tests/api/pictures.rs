//! Input pictures: how they may be sent, and which are refused.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Rgb, RgbImage};
use sd_worker::domain::request::Operation;
use serde_json::json;

use crate::support::{Worker, png};

fn encoded(format: ImageFormat) -> String {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let pixels = RgbImage::from_pixel(16, 8, Rgb([200, 200, 200]));
    pixels.write_to(&mut bytes, format).unwrap();
    STANDARD.encode(bytes.into_inner())
}

#[test]
fn png_jpeg_and_webp_come_as_base64_or_data_url_under_any_name() {
    let worker = Worker::start();
    let broken_lines: String = encoded(ImageFormat::Png)
        .as_bytes()
        .chunks(20)
        .map(|line| format!("{}\n", String::from_utf8_lossy(line)))
        .collect();
    for (name, text) in [
        ("image", encoded(ImageFormat::Png)),
        ("input_image", encoded(ImageFormat::Jpeg)),
        (
            "init_image",
            format!("data:image/webp;base64,{}", encoded(ImageFormat::WebP)),
        ),
        ("image", broken_lines),
        ("image", encoded(ImageFormat::Png).trim_end_matches('=').to_owned()),
    ] {
        let answer = worker.paint("/img2img", &json!({"prompt": "x", name: text}));
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    }
    for request in worker.script.requests.lock().unwrap().iter() {
        let Operation::ImageToImage { image, strength } = &request.operation else {
            panic!("img2img");
        };
        assert_eq!((image.0.width(), image.0.height(), *strength), (16, 8, 0.8));
        assert!(image.0.pixels().all(|pixel| pixel.0[0].abs_diff(200) < 4));
    }
}

#[test]
fn a_mask_comes_with_its_picture() {
    let worker = Worker::start();
    let body = json!({"prompt": "x", "image": png(8, 8), "mask_image": png(4, 4), "strength": 1, "feather": 4});
    assert_eq!(worker.paint("/inpaint", &body).status, 200);
    let Operation::Inpaint {
        mask,
        strength,
        feather,
        ..
    } = &worker.script.requests.lock().unwrap()[0].operation
    else {
        panic!("inpaint");
    };
    assert_eq!((mask.0.width(), *strength, *feather), (4, 1.0, 4));
}

#[test]
fn what_is_no_picture_is_refused() {
    let worker = Worker::start();
    let good = STANDARD.decode(png(64, 64)).unwrap();
    let cut = STANDARD.encode(&good[..good.len() / 2]);
    let mut flipped = good.clone();
    flipped[60] ^= 0xff;
    for (text, status, word) in [
        ("not base64!".to_owned(), 400, "base64"),
        ("data:image/png,abc".to_owned(), 400, "data URL"),
        (STANDARD.encode(b"hello"), 422, "PNG, JPEG or WebP"),
        (STANDARD.encode(b"GIF89a\x01\x00\x01\x00"), 422, "PNG, JPEG or WebP"),
        (String::new(), 422, "PNG, JPEG or WebP"),
        (cut, 422, "cannot be read"),
        (STANDARD.encode(&flipped), 422, "cannot be read"),
        (STANDARD.encode(&good[..8]), 422, "cannot be read"),
    ] {
        for field in ["image", "mask"] {
            let mut body = json!({"prompt": "x", "image": png(8, 8), "mask": png(8, 8)});
            body[field] = text.clone().into();
            let answer = worker.post("/inpaint", &body);
            assert_eq!(
                (answer.status, answer.param().as_str()),
                (status, field),
                "{text:.40}: {}",
                answer.text()
            );
            assert!(answer.message().contains(word), "{}", answer.message());
        }
    }
    assert_eq!(worker.paint("/txt2img", &json!({"prompt": "x"})).status, 200);
}

#[test]
fn huge_pictures_are_refused_before_they_are_decoded() {
    let worker = Worker::with(|plan| {
        plan.settings.limits.max_image_mb = 1;
        plan.settings.limits.max_image_megapixels = 1;
    });
    let answer = worker.post("/img2img", &json!({"prompt": "x", "image": png(1001, 1000)}));
    assert_eq!((answer.status, answer.code().as_str()), (422, "unusable_image"));
    assert!(
        answer.message().contains("1001x1000") && answer.message().contains("1000000"),
        "{}",
        answer.message()
    );

    let answer = worker.post("/img2img", &json!({"prompt": "x", "image": "A".repeat(1_500_000)}));
    assert_eq!((answer.status, answer.param().as_str()), (413, "image"));

    // A header that claims 50,000 x 50,000 pixels, with nothing behind it.
    let mut bomb = STANDARD.decode(png(8, 8)).unwrap();
    bomb[16..24].copy_from_slice(&[0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50]);
    let answer = worker.post("/img2img", &json!({"prompt": "x", "image": STANDARD.encode(&bomb)}));
    assert_eq!(answer.status, 422, "{}", answer.text());
}
