//! The tiny models as one file, named as their makers name tensors, paint the very picture that their folders paint.
//! Names: `tests/fixtures/weights/make_names.py`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value as GgufValue};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use sd_worker::domain::load::{DeviceChoice, DtypeChoice, LoadOptions};
use sd_worker::domain::request::GenerationRequest;
use sd_worker::pipeline::load;
use sd_worker::weights::{Folder, Precision, TensorSource};
use serde_json::Value;
use tempfile::TempDir;

use crate::flux;
use crate::flux_pipeline;
use crate::painting::{Silent, case, decoded, folder, paint, request};

/// Widest distance of a picture from 8-bit weights to one from f16 weights, in steps of 255, on average.
const QUANTISED: f64 = 4.0;

/// What the model at a path paints.
fn painted(path: &Path, request: &GenerationRequest) -> Vec<u8> {
    let options = LoadOptions {
        model: Some(path.to_str().unwrap().to_owned()),
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::F32,
        ..LoadOptions::default()
    };
    let mut pipeline = load(&options, &mut Silent).unwrap();
    decoded(&paint(pipeline.as_mut(), request), 0).into_raw()
}

type Tensors = HashMap<String, Tensor>;

/// The checkpoint's tensors, from the folder's.
fn checkpoint(family: &str, root: &Path) -> Tensors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights/names.json");
    let names: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let folder = Folder::open(root, Precision::Full).unwrap();
    let mut sources: HashMap<&str, std::rc::Rc<dyn TensorSource>> = HashMap::new();
    let mut tensors = HashMap::new();
    for row in names[family].as_array().unwrap() {
        let component = row[1].as_str().unwrap();
        let source = sources
            .entry(component)
            .or_insert_with(|| folder.tensors_in(component).unwrap());
        let read = |name: &Value| {
            let name = name.as_str().unwrap();
            source
                .read(name)
                .unwrap()
                .to_tensor(name, DType::F16, &Device::Cpu)
                .unwrap()
        };
        let found: Vec<Tensor> = row[2].as_array().unwrap().iter().map(read).collect();
        let made = match row[3].as_str().unwrap() {
            "conv" => found[0].unsqueeze(2).unwrap().unsqueeze(3).unwrap(),
            "transposed" => found[0].t().unwrap().contiguous().unwrap(),
            "swapped" => Tensor::cat(&[half(&found[0], 1), half(&found[0], 0)], 0).unwrap(),
            "fused" => Tensor::cat(&found, 0).unwrap(),
            _ => found[0].clone(),
        };
        tensors.insert(row[0].as_str().unwrap().to_owned(), made);
    }
    tensors
}

/// First or second half of a tensor's rows.
fn half(tensor: &Tensor, which: usize) -> Tensor {
    let rows = tensor.dim(0).unwrap() / 2;
    tensor.narrow(0, which * rows, rows).unwrap()
}

/// A place for `model.<ending>`, with the tiny configurations and tokenizers in the folder `model`.
fn place(root: &Path, ending: &str) -> (TempDir, PathBuf) {
    let target = tempfile::tempdir().unwrap();
    for part in [
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "scheduler",
        "tokenizer",
        "tokenizer_2",
    ] {
        let Ok(entries) = fs::read_dir(root.join(part)) else {
            continue;
        };
        fs::create_dir_all(target.path().join("model").join(part)).unwrap();
        for path in entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().unwrap() != "safetensors")
        {
            fs::copy(
                &path,
                target.path().join("model").join(part).join(path.file_name().unwrap()),
            )
            .unwrap();
        }
    }
    let file = target.path().join(format!("model.{ending}"));
    (target, file)
}

/// Writes a GGUF file as converters do: a weight whose rows are no blocks (a 3x3 convolution's) is flattened, and its shape noted.
fn gguf(path: &Path, tensors: &Tensors, kind: GgmlDType) {
    let mut values = vec![("general.architecture".to_owned(), GgufValue::String("sd".to_owned()))];
    let mut stored = Vec::new();
    for (name, tensor) in tensors {
        let mut tensor = tensor.to_dtype(DType::F32).unwrap();
        let (count, block) = (tensor.elem_count(), kind.block_size());
        let whole = tensor.rank() > 1 && count % block == 0;
        if whole && tensor.dims().last().unwrap() % block != 0 {
            let shape = tensor.dims().iter().map(|d| GgufValue::I32(*d as i32)).collect();
            values.push((format!("comfy.gguf.orig_shape.{name}"), GgufValue::Array(shape)));
            tensor = tensor.reshape((count / block, block)).unwrap();
        }
        let kind = if whole { kind } else { GgmlDType::F32 };
        stored.push((name.clone(), QTensor::quantize(&tensor, kind).unwrap()));
    }
    let named: Vec<(&str, &QTensor)> = stored.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let values: Vec<(&str, &GgufValue)> = values.iter().map(|(name, value)| (name.as_str(), value)).collect();
    gguf_file::write(&mut fs::File::create(path).unwrap(), &values, &named).unwrap();
}

#[test]
fn a_checkpoint_paints_what_its_folder_paints() {
    for family in ["sd1", "sd2", "sdxl"] {
        let root = folder(family);
        let request = request(&case(family, "txt2img"));
        let expected = painted(root.path(), &request);
        let tensors = checkpoint(family, root.path());

        let (_keep, file) = place(root.path(), "safetensors");
        candle_core::safetensors::save(&tensors, &file).unwrap();
        assert!(painted(&file, &request) == expected, "{family} as safetensors");

        let (_keep, file) = place(root.path(), "gguf");
        gguf(&file, &tensors, GgmlDType::F16);
        assert!(painted(&file, &request) == expected, "{family} as f16 gguf");

        gguf(&file, &tensors, GgmlDType::Q8_0);
        let found = painted(&file, &request);
        let apart: u64 = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| u64::from(a.abs_diff(*b)))
            .sum();
        let apart = apart as f64 / expected.len() as f64;
        assert!(apart > 0.0 && apart < QUANTISED, "{family} as q8_0 gguf: {apart}");
    }
}

#[test]
fn flux_in_one_file_or_as_a_bare_transformer_paints_what_its_folder_paints() {
    let root = flux::folder("dev");
    let request = flux_pipeline::request(&flux_pipeline::case("dev_txt2img"));
    let expected = painted(root.path(), &request);
    let tensors = checkpoint("flux", root.path());
    let (keep, file) = place(root.path(), "safetensors");
    candle_core::safetensors::save(&tensors, &file).unwrap();
    assert!(painted(&file, &request) == expected, "all in one");

    // The same, as separate files with the names that they are shared under.
    fs::remove_file(&file).unwrap();
    fs::rename(keep.path().join("model"), keep.path().join("flux1-dev")).unwrap();
    let part = |name: &str, prefix: &str| {
        let own = tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone())));
        candle_core::safetensors::save(&own.collect::<Tensors>(), keep.path().join(name)).unwrap();
    };
    part("flux1-dev.safetensors", "model.diffusion_model.");
    part("ae.safetensors", "vae.");
    part("clip_l.safetensors", "text_encoders.clip_l.transformer.");
    part("t5xxl_fp16.safetensors", "text_encoders.t5xxl.transformer.");
    assert!(
        painted(&keep.path().join("flux1-dev.safetensors"), &request) == expected,
        "original layout"
    );
    assert!(
        painted(keep.path(), &request) == expected,
        "the folder of the original layout"
    );

    let transformer: Tensors = tensors
        .into_iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("model.diffusion_model.")?.to_owned(), t)))
        .collect();
    fs::remove_file(keep.path().join("flux1-dev.safetensors")).unwrap();
    gguf(&keep.path().join("flux1-dev.gguf"), &transformer, GgmlDType::F16);
    assert!(
        painted(&keep.path().join("flux1-dev.gguf"), &request) == expected,
        "f16 gguf"
    );
}
