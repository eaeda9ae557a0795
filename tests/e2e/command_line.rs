//! `generate` and `bench` by themselves.

use serde_json::Value;

use crate::worker::{fixtures, folder, program};

#[test]
fn generate_writes_the_pictures_that_it_names() {
    let model = folder("sd1");
    let out = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| {
        program()
            .args([
                "generate",
                "a rusty robot, walking on the beach",
                "--negative",
                "blurry",
                "--steps",
                "6",
            ])
            .args([
                "--guidance",
                "5",
                "--seed",
                "42",
                "--size",
                "64x64",
                "--sampler",
                "euler",
                "--dtype",
                "f32",
            ])
            .args(["--device", "cpu", "--model", model.path().to_str().unwrap()])
            .args(more)
            .output()
            .unwrap()
    };
    let picture = out.path().join("robot.png");
    let done = run(&["-o", picture.to_str().unwrap(), "-n", "2"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(
        text.contains("robot-1.png (seed 42)") && text.contains("robot-2.png (seed 43)"),
        "{text}"
    );
    let found = image::open(out.path().join("robot-1.png")).unwrap().into_rgb8();
    let expected = image::open(fixtures().join("pictures/04-sd1-txt2img-euler-0.png"))
        .unwrap()
        .into_rgb8();
    let apart = found
        .as_raw()
        .iter()
        .zip(expected.as_raw())
        .map(|(a, b)| a.abs_diff(*b));
    assert!(apart.max().unwrap() <= 2);

    let image = fixtures().join("inputs/image.png");
    let mask = fixtures().join("inputs/mask.png");
    let (image, mask) = (image.to_str().unwrap(), mask.to_str().unwrap());
    let mended = out.path().join("mended.webp");
    let done = run(&[
        "--image",
        image,
        "--mask",
        mask,
        "--strength",
        "0.5",
        "-o",
        mended.to_str().unwrap(),
    ]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(image::open(mended).unwrap().into_rgb8().dimensions(), (64, 64));
}

#[test]
fn generate_says_what_is_wrong_with_a_flag() {
    let model = folder("sd1");
    let run = program()
        .args([
            "generate",
            "x",
            "--steps",
            "0",
            "--model",
            model.path().to_str().unwrap(),
        ])
        .output()
        .unwrap();
    assert!(!run.status.success());
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(text.contains("steps") && text.contains("150"), "{text}");
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    for (flags, word) in [
        (["--size", "100"], "--size"),
        (["--quant", "q9"], "q4_0"),
        (["--steps", "0"], "--steps"),
    ] {
        let run = program().args(["bench", "--json"]).args(flags).output().unwrap();
        assert!(!run.status.success());
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(text.contains(word), "{text}");
        assert!(serde_json::from_slice::<Value>(&run.stdout).is_err());
    }
}
