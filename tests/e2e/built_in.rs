//! A worker that is told of no model paints with the one inside it.

use serde_json::json;

use crate::worker::{Worker, program};

#[test]
fn a_fresh_worker_paints_and_the_same_seed_gives_the_same_bytes() {
    let worker = Worker::start(&["--device", "cpu"]);
    let body = json!({"prompt": "a panda on a blue background", "steps": 2, "width": 64, "height": 64, "seed": 3});
    let (headers, first) = worker.post("/txt2img", "image/png", &body);
    assert!(headers.contains(&("x-seed".to_owned(), "3".to_owned())), "{headers:?}");
    let picture = image::load_from_memory(&first).unwrap().into_rgb8();
    assert_eq!(picture.dimensions(), (64, 64));
    assert!(
        picture.pixels().any(|pixel| pixel != picture.get_pixel(0, 0)),
        "a picture of one colour"
    );
    assert_eq!(worker.post("/txt2img", "image/png", &body).1, first);

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("panda.png");
    let status = program()
        .args([
            "generate",
            "a panda on a blue background",
            "--steps",
            "2",
            "--size",
            "64x64",
            "--seed",
            "3",
        ])
        .args(["--device", "cpu", "-o", out.to_str().unwrap()])
        .status();
    assert!(status.unwrap().success());
    assert_eq!(image::open(out).unwrap().into_rgb8(), picture);
}
