//! Makes small files for the tests.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// A tensor to write: name, type name, shape, bytes.
#[derive(Clone)]
pub struct Given {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// An `f32` tensor.
pub fn f32s(name: &str, shape: &[usize], numbers: &[f32]) -> Given {
    assert_eq!(shape.iter().product::<usize>(), numbers.len());
    let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    Given {
        name: name.to_owned(),
        dtype: "F32",
        shape: shape.to_vec(),
        bytes,
    }
}

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &[Given]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A file with this header and data, whether they fit or not.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Writes a file, with the folders above it.
pub fn write(root: &Path, inner: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(inner);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A folder in diffusers' layout that opens: one tensor in each component.
pub fn model_folder(root: &Path) {
    let weights = |name: &str| safetensors(&[f32s(name, &[2], &[1.0, 2.0])]);
    let classes = |pairs: &[(&str, &str)]| -> Map<String, Value> {
        pairs
            .iter()
            .map(|(part, class)| ((*part).to_owned(), json!(["library", class])))
            .collect()
    };
    let mut index = classes(&[
        ("scheduler", "PNDMScheduler"),
        ("text_encoder", "CLIPTextModel"),
        ("tokenizer", "CLIPTokenizer"),
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
    ]);
    index.insert("_class_name".to_owned(), json!("StableDiffusionPipeline"));
    index.insert("safety_checker".to_owned(), json!([null, null]));
    write(root, "model_index.json", Value::Object(index).to_string());
    write(
        root,
        "scheduler/scheduler_config.json",
        r#"{"_class_name": "PNDMScheduler"}"#,
    );
    write(root, "unet/config.json", r#"{"cross_attention_dim": 768}"#);
    write(
        root,
        "unet/diffusion_pytorch_model.safetensors",
        weights("conv_in.bias"),
    );
    write(root, "vae/config.json", "{}");
    write(
        root,
        "vae/diffusion_pytorch_model.safetensors",
        weights("encoder.conv_in.bias"),
    );
    write(root, "text_encoder/config.json", "{}");
    write(
        root,
        "text_encoder/model.safetensors",
        weights("text_model.final_layer_norm.bias"),
    );
    write(root, "tokenizer/vocab.json", "{}");
    write(root, "tokenizer/merges.txt", "#version: 0.2\n");
}
