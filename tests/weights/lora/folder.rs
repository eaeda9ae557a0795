//! The folder that LoRAs lie in.

use sd_worker::weights::lora::{LoraDir, LoraError, Loras};
use std::os::unix::fs::symlink;

use crate::support::{f32s, safetensors, write};

use super::support::{golden, made, named};

#[test]
fn only_files_below_the_folder_are_opened() {
    let root = tempfile::tempdir().unwrap();
    let bytes = safetensors(&[f32s("lora_unet_conv_in.diff", &[1], &[1.0])]);
    write(root.path(), "loras/styles/ink.safetensors", &bytes);
    write(root.path(), "loras/plain.safetensors", &bytes);
    write(root.path(), "secret.safetensors", &bytes);
    symlink("../secret.safetensors", root.path().join("loras/link.safetensors")).unwrap();
    symlink("..", root.path().join("loras/up")).unwrap();
    symlink("styles/ink.safetensors", root.path().join("loras/inner.safetensors")).unwrap();
    let dir = LoraDir::new(root.path().join("loras"));
    for name in ["plain", "plain.safetensors", "styles/ink", "ink", "INK", "inner"] {
        assert!(dir.find(name).is_ok(), "{name}");
    }
    for name in [
        "../secret",
        "/etc/passwd",
        "styles/../../secret",
        "link",
        "up/secret",
        "",
        "a\\b",
        "./plain",
    ] {
        let error = dir.find(name).unwrap_err();
        assert!(matches!(error, LoraError::Outside { .. }), "{name}: {error}");
    }
    let error = dir.find("nothing").unwrap_err().to_string();
    assert!(error.contains("plain") && error.contains("styles/ink"), "{error}");
    write(root.path(), "loras/other/ink.safetensors", &bytes);
    assert!(matches!(dir.find("ink").unwrap_err(), LoraError::Ambiguous { .. }));
    write(root.path(), "loras/damaged.safetensors", b"not a file of tensors");
    let names: Vec<String> = dir.list().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["damaged", "inner", "other/ink", "plain", "styles/ink"]);
    let layers = made(&[("conv_in", &[1, 1])], false);
    let error = Loras::new(None).apply(&[named("plain", 1.0)], &layers).unwrap_err();
    assert!(matches!(error, LoraError::NoFolder { .. }), "{error}");
    let error = Loras::new(Some(dir))
        .apply(&[named("plain", f32::NAN)], &layers)
        .unwrap_err();
    assert!(matches!(error, LoraError::Strength { .. }), "{error}");
}

#[test]
fn metadata_gives_the_words_that_trigger() {
    let list = golden().list();
    let kohya = list.iter().find(|info| info.name == "lora-kohya").unwrap();
    assert_eq!(kohya.trigger_words, ["rusty robot", "beach"]);
    assert_eq!(kohya.base_model.as_deref(), Some("sd_v1"));
    let plain = list.iter().find(|info| info.name == "lora-loha").unwrap();
    assert_eq!((plain.trigger_words.len(), plain.base_model.as_deref()), (0, None));
}
