//! Models as folders in diffusers' layout.

use std::fs;
use std::path::Path;

use sd_worker::domain::model::Family;
use sd_worker::weights::{Component, Folder, ModelFiles, OpenOptions, Precision, TokenizerFiles, WeightsError};

use crate::support::{f32s, model_folder, safetensors, write};

fn open(root: &Path) -> Result<ModelFiles, WeightsError> {
    ModelFiles::open_path(root, &OpenOptions::default())
}

fn unet_names(root: &Path, precision: Precision) -> Result<Vec<String>, WeightsError> {
    let mut names = Folder::open(root, precision)?.component(Component::Unet)?.names();
    names.sort_unstable();
    Ok(names)
}

#[test]
fn the_tiny_pipelines_open() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines");
    for (name, family) in [("sd1", Family::Sd1), ("sdxl", Family::Sdxl)] {
        let files = open(&root.join(name)).unwrap();
        assert_eq!(files.family(), family, "{name}");
        assert!(files.tokenizer().is_ok(), "{name}");
        let unet = files.tensors(Component::Unet).unwrap();
        let bias = unet.read("conv_in.bias").unwrap();
        assert_eq!(unet.describe("conv_in.bias").unwrap().0, bias.shape);
    }
}

#[test]
fn a_folder_without_a_tokenizer_reads_clip_s_vocabulary_if_its_encoder_does() {
    let root = tempfile::tempdir().unwrap();
    model_folder(root.path());
    if root.path().join("tokenizer").exists() {
        fs::remove_dir_all(root.path().join("tokenizer")).unwrap();
    }
    write(root.path(), "text_encoder/config.json", r#"{"vocab_size": 49408}"#);
    let files = open(root.path()).unwrap();
    assert!(matches!(files.tokenizer().unwrap(), TokenizerFiles::BuiltInClip));
    write(root.path(), "text_encoder/config.json", r#"{"vocab_size": 1000}"#);
    let error = open(root.path()).unwrap().tokenizer().map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("tokenizer"), "{error}");
}

#[test]
fn a_large_model_in_half_precision_is_known_by_its_headers() {
    let root = tempfile::tempdir().unwrap();
    model_folder(root.path());
    assert!(!open(root.path()).unwrap().is_large_in_half().unwrap());
    for (dtype, bytes, expected) in [("F16", 2_u64, true), ("F32", 4, false)] {
        let count = 600_000_000_u64;
        let header = format!(
            r#"{{"x":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":[0,{}]}}}}"#,
            count * bytes
        );
        let path = root.path().join("unet/diffusion_pytorch_model.safetensors");
        let mut head = (header.len() as u64).to_le_bytes().to_vec();
        head.extend(header.as_bytes());
        fs::write(&path, &head).unwrap();
        // The numbers are a hole in the file: nothing is written, and nothing may be read.
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(head.len() as u64 + count * bytes).unwrap();
        assert_eq!(
            open(root.path()).unwrap().is_large_in_half().unwrap(),
            expected,
            "{dtype}"
        );
    }
}

#[test]
fn a_shard_index_is_followed_and_checked() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    model_folder(root);
    fs::remove_file(root.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let index = |map: &str| format!(r#"{{"metadata": {{}}, "weight_map": {map}}}"#);
    let first = "diffusion_pytorch_model-00001-of-00002.safetensors";
    let second = "diffusion_pytorch_model-00002-of-00002.safetensors";
    let index_path = "unet/diffusion_pytorch_model.safetensors.index.json";
    write(
        root,
        index_path,
        index(&format!(r#"{{"a": "{first}", "b": "{second}"}}"#)),
    );
    write(root, &format!("unet/{first}"), safetensors(&[f32s("a", &[1], &[1.0])]));

    let error = unet_names(root, Precision::Full).unwrap_err().to_string();
    assert!(error.contains(second) && error.contains("missing"), "{error}");

    write(root, &format!("unet/{second}"), safetensors(&[f32s("b", &[1], &[2.0])]));
    assert_eq!(unet_names(root, Precision::Full).unwrap(), ["a", "b"]);

    write(root, &format!("unet/{second}"), safetensors(&[f32s("c", &[1], &[2.0])]));
    let error = unet_names(root, Precision::Full).unwrap_err().to_string();
    assert!(error.contains("tensor `b` is in none of the parts"), "{error}");

    write(
        root,
        &format!("unet/{second}"),
        safetensors(&[f32s("a", &[1], &[2.0]), f32s("b", &[1], &[2.0])]),
    );
    let error = unet_names(root, Precision::Full).unwrap_err().to_string();
    assert!(error.contains("`a` is in another part"), "{error}");

    write(root, index_path, index(r#"{"a": "../../etc/passwd.safetensors"}"#));
    let error = unet_names(root, Precision::Full).unwrap_err().to_string();
    assert!(error.contains("no safetensors file beside it"), "{error}");
}

#[test]
fn the_variant_follows_the_compute_type() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    model_folder(root);
    write(
        root,
        "unet/diffusion_pytorch_model.fp16.safetensors",
        safetensors(&[f32s("half", &[1], &[1.0])]),
    );
    assert_eq!(unet_names(root, Precision::Half).unwrap(), ["half"]);
    assert_eq!(unet_names(root, Precision::Full).unwrap(), ["conv_in.bias"]);
}

#[test]
fn a_pickle_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    model_folder(root);
    fs::remove_file(root.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    write(root, "unet/diffusion_pytorch_model.bin", b"\x80\x02");
    match open(root).map(|_| ()) {
        Err(error @ WeightsError::Pickle { .. }) => {
            assert!(
                error.to_string().contains("unet/diffusion_pytorch_model.bin"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
    write(root, "v1-5-pruned.ckpt", b"\x80\x02");
    let error = open(&root.join("v1-5-pruned.ckpt")).map(|_| ()).unwrap_err();
    assert!(matches!(error, WeightsError::Pickle { .. }), "{error}");
}

#[test]
fn what_is_missing_is_named() {
    let cases: &[(&str, &[&str])] = &[
        ("vae/diffusion_pytorch_model.safetensors", &["vae", ".safetensors"]),
        ("unet/config.json", &["unet/config.json"]),
        ("scheduler/scheduler_config.json", &["scheduler/scheduler_config.json"]),
        ("tokenizer/merges.txt", &["tokenizer", "merges.txt"]),
    ];
    for (gone, expected) in cases {
        let root = tempfile::tempdir().unwrap();
        model_folder(root.path());
        fs::remove_file(root.path().join(gone)).unwrap();
        match open(root.path()).map(|_| ()) {
            Err(error @ WeightsError::NoPart { .. }) => {
                let text = error.to_string();
                assert!(expected.iter().all(|part| text.contains(part)), "{gone}: {text}");
            }
            other => panic!("{gone}: {other:?}"),
        }
    }
    let root = tempfile::tempdir().unwrap();
    model_folder(root.path());
    fs::remove_dir_all(root.path().join("text_encoder")).unwrap();
    let error = open(root.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("`text_encoder`"), "{error}");
}

#[test]
fn a_folder_that_is_no_model_is_refused_with_what_was_found() {
    let root = tempfile::tempdir().unwrap();
    let error = open(root.path()).map(|_| ()).unwrap_err();
    assert!(matches!(error, WeightsError::Unrecognised { .. }), "{error}");
    write(
        root.path(),
        "model_index.json",
        r#"{"_class_name": "StableDiffusion3Pipeline"}"#,
    );
    write(root.path(), "vae/config.json", "{}");
    write(root.path(), "vae/diffusion_pytorch_model.safetensors", safetensors(&[]));
    write(root.path(), "text_encoder/config.json", "{}");
    write(root.path(), "text_encoder/model.safetensors", safetensors(&[]));
    let error = open(root.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("StableDiffusion3Pipeline"), "{error}");
    let error = open(&root.path().join("nowhere")).map(|_| ()).unwrap_err();
    assert!(matches!(error, WeightsError::Io { .. }), "{error}");
}

#[test]
fn a_vae_and_a_tokenizer_may_come_from_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    model_folder(&root.path().join("model"));
    write(root.path(), "vae/config.json", r#"{"scaling_factor": 0.5}"#);
    write(
        root.path(),
        "vae/diffusion_pytorch_model.safetensors",
        safetensors(&[f32s("other", &[1], &[1.0])]),
    );
    write(root.path(), "t5/tokenizer.json", "{}");
    let options = OpenOptions {
        vae: Some(root.path().join("vae")),
        tokenizer_2: Some(root.path().join("t5/tokenizer.json")),
        ..OpenOptions::default()
    };
    let spec = root.path().join("model").to_string_lossy().parse().unwrap();
    let files = ModelFiles::open(&spec, &options, &mut |_| ()).unwrap();
    assert!(files.config(Component::Vae).unwrap().contains("0.5"));
    assert_eq!(files.tensors(Component::Vae).unwrap().names(), ["other"]);
    assert_eq!(files.tokenizer_2().unwrap().read("tokenizer.json").unwrap(), b"{}");
}
