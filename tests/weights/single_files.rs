//! Checkpoints in one file: what comes out is what diffusers' own converters would make of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use sd_worker::domain::model::Family;
use sd_worker::models::clip::{ClipConfig, ClipText};
use sd_worker::weights::{
    Component, Folder, ModelFiles, OpenOptions, Precision, RawTensor, StoredType, TensorSource, TokenizerFiles,
    Weights, WeightsError,
};
use serde_json::{Value, json};

use crate::support::{Given, f32s, safetensors, write};

/// A row of `names.json`.
struct Row {
    theirs: String,
    component: Component,
    ours: Vec<String>,
    how: String,
}

fn rows(model: &str) -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights/names.json");
    let all: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |row: &Value| Row {
        theirs: text(&row[0]),
        component: *Component::ALL.iter().find(|c| c.folder() == text(&row[1])).unwrap(),
        ours: row[2].as_array().unwrap().iter().map(text).collect(),
        how: text(&row[3]),
    };
    all[model].as_array().unwrap().iter().map(row).collect()
}

fn pipelines() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipelines")
}

/// Folder of a component of a tiny pipeline, which may be that of `sd1`.
fn component_of(family: &str, inner: &str) -> PathBuf {
    let own = pipelines().join(family).join(inner);
    if own.exists() {
        own
    } else {
        pipelines().join("sd1").join(inner)
    }
}

fn tensors_of(family: &str, component: Component) -> std::rc::Rc<dyn TensorSource> {
    let root = component_of(family, component.folder());
    Folder::open(&root, Precision::Full).unwrap().tensors_in("").unwrap()
}

fn type_name(stored: StoredType) -> &'static str {
    match stored {
        StoredType::F32 => "F32",
        StoredType::F16 => "F16",
        StoredType::Bf16 => "BF16",
        other => panic!("{other:?}"),
    }
}

/// The tensor under another name.
fn named(name: String, raw: RawTensor) -> Given {
    Given {
        name,
        dtype: type_name(raw.stored),
        shape: raw.shape,
        bytes: raw.bytes,
    }
}

/// Makes the checkpoint's tensor from diffusers' tensors.
fn assembled(row: &Row, found: &[RawTensor]) -> Given {
    let first = &found[0];
    let (mut shape, mut bytes) = (first.shape.clone(), first.bytes.clone());
    match row.how.as_str() {
        "same" => {}
        "conv" => shape.extend([1, 1]),
        "transposed" => {
            let width = bytes.len() / (shape[0] * shape[1]);
            let at = |r: usize, c: usize| &first.bytes[(r * shape[1] + c) * width..][..width];
            bytes = (0..shape[1])
                .flat_map(|c| (0..shape[0]).flat_map(move |r| at(r, c).to_vec()))
                .collect();
            shape.reverse();
        }
        "fused" => {
            shape[0] *= found.len();
            bytes = found.iter().flat_map(|raw| raw.bytes.clone()).collect();
        }
        other => panic!("{other}"),
    }
    Given {
        name: row.theirs.clone(),
        dtype: type_name(first.stored),
        shape,
        bytes,
    }
}

/// Writes the tiny pipeline as one file, with a folder of its name for configurations and tokenizers.
fn checkpoint(root: &Path, family: &str, extra: Vec<Given>, keep: impl Fn(&Row) -> bool) -> PathBuf {
    let mut sources = BTreeMap::new();
    let mut tensors = extra;
    for row in rows(family).into_iter().filter(keep) {
        let source = sources
            .entry(row.component)
            .or_insert_with(|| tensors_of(family, row.component));
        let found: Vec<_> = row.ours.iter().map(|name| source.read(name).unwrap()).collect();
        tensors.push(assembled(&row, &found));
    }
    write(root, "dream.safetensors", safetensors(&tensors));
    for component in sources.keys() {
        let inner = format!("{}/config.json", component.folder());
        write(
            root,
            &format!("dream/{inner}"),
            fs::read(component_of(family, &inner)).unwrap(),
        );
    }
    root.join("dream.safetensors")
}

fn open(path: &Path) -> Result<ModelFiles, WeightsError> {
    ModelFiles::open_path(path, &OpenOptions::default())
}

fn refusal(path: &Path) -> String {
    open(path).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn the_tiny_pipelines_as_one_file_hold_the_same_tensors() {
    for (family, expected) in [("sd1", Family::Sd1), ("sd2", Family::Sd2), ("sdxl", Family::Sdxl)] {
        let root = tempfile::tempdir().unwrap();
        let ema = f32s("model_ema.diffusion_modelinput_blocks00weight", &[1], &[9.0]);
        let path = checkpoint(root.path(), family, vec![ema], |_| true);
        let files = open(&path).unwrap();
        assert_eq!(files.family(), expected);
        let mut count = 0;
        for &component in Component::ALL {
            if !files.has(component) {
                continue;
            }
            let (ours, folder) = (files.tensors(component).unwrap(), tensors_of(family, component));
            let (mut a, mut b) = (ours.names(), folder.names());
            a.sort_unstable();
            b.sort_unstable();
            assert_eq!(a, b, "{family} {component}");
            for name in a {
                let (one, other) = (ours.read(&name).unwrap(), folder.read(&name).unwrap());
                assert_eq!(
                    (one.shape, one.bytes),
                    (other.shape, other.bytes),
                    "{family} {component} {name}"
                );
                count += 1;
            }
        }
        assert!(count > 400, "{count}");
        assert!(matches!(files.tokenizer().unwrap(), TokenizerFiles::BuiltInClip));
    }
}

#[test]
fn averages_are_read_where_a_file_has_no_plain_weights_of_the_unet() {
    for family in ["sd1", "sdxl"] {
        let root = tempfile::tempdir().unwrap();
        let path = checkpoint(root.path(), family, Vec::new(), |_| true);
        let whole = sd_worker::weights::SafeTensors::open(&path).unwrap();
        let mut tensors = vec![f32s("model_ema.decay", &[], &[0.9999])];
        for name in whole.names() {
            let raw = whole.read(&name).unwrap();
            let name = match name.strip_prefix("model.diffusion_model.") {
                Some(own) => format!("model_ema.diffusion_model{}", own.replace('.', "")),
                None => name,
            };
            tensors.push(named(name, raw));
        }
        write(root.path(), "dream.safetensors", safetensors(&tensors));
        let (unet, folder) = (
            open(&path).unwrap().tensors(Component::Unet).unwrap(),
            tensors_of(family, Component::Unet),
        );
        assert_eq!(unet.names().len(), folder.names().len(), "{family}");
        for name in folder.names() {
            assert_eq!(
                unet.read(&name).unwrap().bytes,
                folder.read(&name).unwrap().bytes,
                "{family} {name}"
            );
        }
    }
}

#[test]
fn the_depth_of_the_released_model_is_found_from_its_names() {
    let root = tempfile::tempdir().unwrap();
    let mut number = 0.0_f32;
    let mut expected = BTreeMap::new();
    let mut tensors = Vec::new();
    for row in rows("sd15") {
        number += 1.0;
        let ours = &row.ours[0];
        let shape: &[usize] = match () {
            () if ours.contains("norm") || ours.ends_with("bias") => &[1],
            () if ours.ends_with("attn2.to_k.weight") => &[1, 768],
            () if row.how == "conv" || ours.contains("conv") || ours.contains(".proj_") => &[1, 1, 1, 1],
            () => &[1, 1],
        };
        tensors.push(f32s(&row.theirs, shape, &vec![number; shape.iter().product()]));
        expected.insert((row.component, ours.clone()), number);
    }
    write(root.path(), "v1-5.safetensors", safetensors(&tensors));
    let files = open(&root.path().join("v1-5.safetensors")).unwrap();
    assert_eq!(files.family(), Family::Sd1);
    let mut seen = 0;
    for component in [Component::Unet, Component::Vae, Component::TextEncoder] {
        let source = files.tensors(component).unwrap();
        for name in source.names() {
            let found = source.read(&name).unwrap().to_f32(&name).unwrap()[0];
            assert_eq!(expected.get(&(component, name.clone())), Some(&found), "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, expected.len());
    let unet: Value = serde_json::from_str(files.config(Component::Unet).unwrap()).unwrap();
    let text = unet["down_block_types"].to_string() + &unet["up_block_types"].to_string();
    assert_eq!(
        text,
        r#"["CrossAttnDownBlock2D","CrossAttnDownBlock2D","CrossAttnDownBlock2D","DownBlock2D"]["UpBlock2D","CrossAttnUpBlock2D","CrossAttnUpBlock2D","CrossAttnUpBlock2D"]"#
    );
    assert_eq!(
        (&unet["layers_per_block"], &unet["cross_attention_dim"]),
        (&Value::from(2), &Value::from(768))
    );
    let clip: Value = serde_json::from_str(files.config(Component::TextEncoder).unwrap()).unwrap();
    assert_eq!(clip["num_hidden_layers"], 12);
}

#[test]
fn a_missing_vae_or_text_encoder_is_named_and_may_lie_beside_the_file() {
    let root = tempfile::tempdir().unwrap();
    let path = checkpoint(root.path(), "sd1", Vec::new(), |row| row.component == Component::Unet);
    // Without the folder of the same name nothing lies beside the file.
    fs::remove_dir_all(root.path().join("dream")).unwrap();
    // The tiny UNet is told from its text encoder; a bare one must have a released width.
    assert!(refusal(&path).contains("fits no family"), "{}", refusal(&path));
    let path = checkpoint(root.path(), "sd1", Vec::new(), |row| row.component != Component::Vae);
    fs::remove_dir_all(root.path().join("dream")).unwrap();
    let text = refusal(&path);
    assert!(text.contains("VAE") && text.contains("--vae"), "{text}");

    let vae = rows("sd1").into_iter().filter(|row| row.component == Component::Vae);
    let source = tensors_of("sd1", Component::Vae);
    let tensors: Vec<Given> = vae
        .map(|row| {
            let given = assembled(&row, &[source.read(&row.ours[0]).unwrap()]);
            Given {
                name: given.name.replace("first_stage_model.", ""),
                ..given
            }
        })
        .collect();
    write(root.path(), "elsewhere/my.safetensors", safetensors(&tensors));
    let options = OpenOptions {
        vae: Some(root.path().join("elsewhere/my.safetensors")),
        ..OpenOptions::default()
    };
    let spec = path.to_string_lossy().parse().unwrap();
    let files = ModelFiles::open(&spec, &options, &mut |_| ()).unwrap();
    assert_eq!(
        files.tensors(Component::Vae).unwrap().names().len(),
        source.names().len()
    );
    write(root.path(), "vae-ft-mse-840000.safetensors", safetensors(&tensors));
    assert!(open(&path).unwrap().has(Component::Vae));

    let path = checkpoint(root.path(), "sdxl", Vec::new(), |row| {
        row.component != Component::TextEncoder2
    });
    let text = refusal(&path);
    assert!(
        text.contains("second text encoder") && text.contains("clip_g"),
        "{text}"
    );
}

#[test]
fn old_names_of_the_vae_s_attention_are_read_too() {
    let root = tempfile::tempdir().unwrap();
    crate::support::model_folder(root.path());
    let names = ["query", "key", "value", "proj_attn"];
    let tensors: Vec<Given> = names
        .iter()
        .flat_map(|layer| {
            let at = format!("decoder.mid_block.attentions.0.{layer}");
            [
                f32s(&format!("{at}.weight"), &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
                f32s(&format!("{at}.bias"), &[2], &[5.0, 6.0]),
            ]
        })
        .collect();
    write(
        root.path(),
        "vae/diffusion_pytorch_model.safetensors",
        safetensors(&tensors),
    );
    let vae = open(root.path()).unwrap().tensors(Component::Vae).unwrap();
    for layer in ["to_q", "to_k", "to_v", "to_out.0"] {
        let name = format!("decoder.mid_block.attentions.0.{layer}.weight");
        assert_eq!(vae.read(&name).unwrap().shape, [2, 2], "{name}");
    }
}

#[test]
fn markers_and_metadata_say_what_a_model_predicts() {
    let prediction = |family: &str, extra: Vec<Given>| {
        let root = tempfile::tempdir().unwrap();
        let files = open(&checkpoint(root.path(), family, extra, |_| true)).unwrap();
        let config: Value = serde_json::from_str(files.scheduler_config()).unwrap();
        (
            config["prediction_type"].as_str().unwrap().to_owned(),
            config["rescale_betas_zero_snr"] == true,
        )
    };
    let marker = |name: &str| f32s(name, &[0], &[]);
    assert_eq!(prediction("sdxl", vec![]), ("epsilon".to_owned(), false));
    assert_eq!(
        prediction("sdxl", vec![marker("v_pred")]),
        ("v_prediction".to_owned(), false)
    );
    assert_eq!(
        prediction("sdxl", vec![marker("v_pred"), marker("ztsnr")]),
        ("v_prediction".to_owned(), true)
    );
    let bias = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
    assert_eq!(
        prediction("sd2", vec![f32s(bias, &[2], &[0.3, -0.3])]).0,
        "v_prediction"
    );
    assert_eq!(prediction("sd2", vec![f32s(bias, &[2], &[0.03, -0.03])]).0, "epsilon");
}

#[test]
fn edm_models_are_refused_and_not_taken_for_sdxl() {
    for (marker, name) in [("edm_mean", "Playground"), ("edm_vpred.sigma_max", "CosXL")] {
        let root = tempfile::tempdir().unwrap();
        let path = checkpoint(root.path(), "sdxl", vec![f32s(marker, &[1], &[1.0])], |_| true);
        let said = refusal(&path);
        assert!(said.contains("EDM") && said.contains(name), "{said}");
    }
}

/// What diffusers' `from_single_file` takes from the configuration of the family's base model.
#[test]
fn a_file_without_scheduler_settings_has_those_of_its_family_s_base_model() {
    for family in ["sd1", "sd2", "sdxl"] {
        let root = tempfile::tempdir().unwrap();
        let files = open(&checkpoint(root.path(), family, Vec::new(), |_| true)).unwrap();
        let config: Value = serde_json::from_str(files.scheduler_config()).unwrap();
        let own = |field: &str| config.get(field).and_then(Value::as_bool);
        let settings = ["clip_sample", "set_alpha_to_one", "skip_prk_steps"].map(own);
        assert_eq!(settings, [Some(false), Some(false), Some(true)], "{family}");
        assert_eq!(
            (&config["steps_offset"], &config["beta_start"]),
            (&json!(1), &json!(0.00085))
        );
    }
}

#[test]
fn a_unet_may_have_diffusers_names_in_a_single_file_too() {
    for (family, expected) in [("sd1", Family::Sd1), ("sdxl", Family::Sdxl)] {
        let root = tempfile::tempdir().unwrap();
        let unet = tensors_of(family, Component::Unet);
        let names = unet.names().into_iter();
        let tensors = names
            .map(|name| named(name.clone(), unet.read(&name).unwrap()))
            .collect();
        let path = checkpoint(root.path(), family, tensors, |row| row.component != Component::Unet);
        let files = open(&path).unwrap();
        assert_eq!(files.family(), expected);
        let found = files.tensors(Component::Unet).unwrap();
        for name in unet.names() {
            assert_eq!(
                found.read(&name).unwrap().bytes,
                unet.read(&name).unwrap().bytes,
                "{name}"
            );
        }
    }
}

/// stable-diffusion.cpp writes the second text encoder so when it converts SDXL.
#[test]
fn stable_diffusion_cpp_s_names_of_the_second_text_encoder_are_read() {
    let root = tempfile::tempdir().unwrap();
    let mut tensors = Vec::new();
    let second = tensors_of("sdxl", Component::TextEncoder2);
    for name in second.names() {
        let raw = second.read(&name).unwrap();
        let theirs = format!("cond_stage_model.1.transformer.{name}");
        if name != "text_projection.weight" {
            tensors.push(named(theirs, raw));
            continue;
        }
        let &[rows, columns] = raw.shape.as_slice() else {
            panic!("{:?}", raw.shape)
        };
        let wide = raw.to_f32(&name).unwrap();
        let turned: Vec<f32> = (0..rows * columns)
            .map(|at| wide[at % rows * columns + at / rows])
            .collect();
        let theirs = "cond_stage_model.1.transformer.text_model.text_projection";
        tensors.push(f32s(theirs, &[columns, rows], &turned));
    }
    let path = checkpoint(root.path(), "sdxl", tensors, |row| {
        row.component != Component::TextEncoder2
    });
    let read = open(&path).unwrap().tensors(Component::TextEncoder2).unwrap();
    for name in second.names() {
        let (one, other) = (read.read(&name).unwrap(), second.read(&name).unwrap());
        assert_eq!(one.shape, other.shape, "{name}");
        assert_eq!(one.to_f32(&name).unwrap(), other.to_f32(&name).unwrap(), "{name}");
    }
}

#[test]
fn fp8_storage_is_read_as_its_numbers() {
    // 1.0, -2.0, 0.5, 448.0 in float8_e4m3fn; 1.0, -2.0, 0.5, 57344.0 in float8_e5m2.
    let cases = [
        ("F8_E4M3", [0x38, 0xc0, 0x30, 0x7e], [1.0, -2.0, 0.5, 448.0]),
        ("F8_E5M2", [0x3c, 0xc0, 0x38, 0x7b], [1.0, -2.0, 0.5, 57344.0]),
    ];
    for (dtype, bytes, expected) in cases {
        let root = tempfile::tempdir().unwrap();
        let path = checkpoint(root.path(), "sd1", Vec::new(), |row| row.ours[0] != "conv_out.bias");
        let mut tensors = vec![Given {
            name: "model.diffusion_model.out.2.bias".to_owned(),
            dtype,
            shape: vec![4],
            bytes: bytes.to_vec(),
        }];
        let whole = sd_worker::weights::SafeTensors::open(&path).unwrap();
        for name in whole.names() {
            let raw = whole.read(&name).unwrap();
            tensors.push(named(name, raw));
        }
        write(root.path(), "dream.safetensors", safetensors(&tensors));
        let unet = open(&path).unwrap().tensors(Component::Unet).unwrap();
        assert_eq!(
            unet.read("conv_out.bias").unwrap().to_f32("x").unwrap(),
            expected,
            "{dtype}"
        );
    }
}

/// ComfyUI's scaled files: the number that counts is the stored one times its layer's `scale_weight`, today `weight_scale`.
#[test]
fn scaled_fp8_is_read_as_its_numbers_times_their_scale() {
    let root = tempfile::tempdir().unwrap();
    let stored = Given {
        name: "model.diffusion_model.time_embed.0.weight".to_owned(),
        dtype: "F8_E4M3",
        shape: vec![32, 8],
        bytes: (0..=255)
            .map(|bits: u8| if bits & 0x7f == 0x7f { 0 } else { bits })
            .collect(),
    };
    let unet = |scale: Option<(&str, f32)>| {
        let mut extra = vec![stored.clone()];
        let layer = "model.diffusion_model.time_embed.0";
        extra.extend(scale.map(|(ending, scale)| f32s(&format!("{layer}.{ending}"), &[], &[scale])));
        let path = checkpoint(root.path(), "sd1", extra, |row| row.theirs != stored.name);
        open(&path).unwrap().tensors(Component::Unet).unwrap()
    };
    let name = "time_embedding.linear_1.weight";
    let numbers = |unet, dtype| -> Vec<f32> {
        let weights = Weights::new(unet, Device::Cpu, dtype);
        let tensor = weights.tensor(name, &[32, 8]).unwrap().to_dtype(DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    let plain = numbers(unet(None), DType::F32);
    assert_eq!((plain[0x38], plain[0x7e]), (1.0, 448.0));
    let half = |n: f32| half::bf16::from_f32(n).to_f32();
    let wide: Vec<f32> = plain.iter().map(|n| n * 0.3).collect();
    let narrow: Vec<f32> = wide.iter().map(|n| half(*n)).collect();
    for scale in [("scale_weight", 0.3), ("weight_scale", 0.3)] {
        assert_eq!(numbers(unet(Some(scale)), DType::F32), wide);
        assert_eq!(numbers(unet(Some(scale)), DType::BF16), narrow);
        let rows = unet(Some(scale)).read_rows(name, 3..5).unwrap().to_f32(name).unwrap();
        assert_eq!(rows, narrow[24..40]);
    }
}

#[test]
fn what_fits_no_family_is_refused_with_what_was_found() {
    let cases: &[(&str, &str)] = &[
        (
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            "it is a LoRA",
        ),
        ("decoder.mid.block_1.norm1.weight", "it is a VAE; name it with --vae"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        (
            "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
            "Stable Diffusion 3",
        ),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("distilled_guidance_layer.in_proj.weight", "Chroma"),
        ("enc.blk.0.attn_q.weight", "T5 text encoder"),
        ("bert.encoder.weight", "1 tensors such as `bert.encoder.weight`"),
    ];
    for (name, expected) in cases {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "x.safetensors", safetensors(&[f32s(name, &[1], &[1.0])]));
        let error = open(&root.path().join("x.safetensors")).map(|_| ()).unwrap_err();
        assert!(matches!(error, WeightsError::Unrecognised { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn a_folder_with_one_model_file_is_that_model() {
    let root = tempfile::tempdir().unwrap();
    checkpoint(root.path(), "sd1", Vec::new(), |_| true);
    write(
        root.path(),
        "other.safetensors",
        safetensors(&[f32s("x", &[1], &[1.0])]),
    );
    assert_eq!(open(root.path()).unwrap().family(), Family::Sd1);
    fs::copy(
        root.path().join("dream.safetensors"),
        root.path().join("copy.safetensors"),
    )
    .unwrap();
    let text = refusal(root.path());
    assert!(text.contains("copy.safetensors, dream.safetensors"), "{text}");
}

/// Released files of Stable Diffusion 2 carry OpenCLIP's projection, which nothing reads; its size is not the one that
/// diffusers' configuration notes.
#[test]
fn a_text_encoder_s_projection_has_the_size_that_its_file_has() {
    let root = tempfile::tempdir().unwrap();
    let projection = f32s("cond_stage_model.model.text_projection", &[16, 16], &[0.5; 256]);
    let file = checkpoint(root.path(), "sd2", vec![projection], |_| true);
    fs::remove_dir_all(root.path().join("dream")).unwrap();
    let files = open(&file).unwrap();
    let config = ClipConfig::parse(files.config(Component::TextEncoder).unwrap()).unwrap();
    assert_eq!((config.hidden_size, config.projection_dim), (16, 16));
    let tensors = files.tensors(Component::TextEncoder).unwrap();
    let weights = Weights::new(tensors, Device::Cpu, DType::F32);
    assert!(ClipText::load(&weights, &config).is_ok());
}

#[test]
fn a_tokenizer_may_be_named_by_its_folder() {
    let root = tempfile::tempdir().unwrap();
    let file = checkpoint(root.path(), "sdxl", Vec::new(), |_| true);
    write(root.path(), "words/tokenizer.json", b"{}");
    let open = |inner: &str| {
        let options = OpenOptions {
            tokenizer_2: Some(root.path().join(inner)),
            ..OpenOptions::default()
        };
        let spec = file.to_str().unwrap().parse().unwrap();
        ModelFiles::open(&spec, &options, &mut |_| {})
            .unwrap()
            .tokenizer_2()
            .unwrap()
            .read("tokenizer.json")
    };
    assert_eq!(open("words"), Some(b"{}".to_vec()));
    assert_eq!(open("words/tokenizer.json"), Some(b"{}".to_vec()));
}
