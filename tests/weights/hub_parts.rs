//! A bare FLUX transformer of the hub: its other parts come from the repository of its family.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use candle_core::quantized::GgmlDType;
use sd_worker::domain::model::Family;
use sd_worker::weights::hub::HubConfig;
use sd_worker::weights::{Component, HubRef, ModelFiles, OpenOptions, Place, WeightsError};
use tempfile::TempDir;

use crate::gguf::{flux, gguf};
use crate::hub_server::{Behaviour, HubServer};

const DEV: &str = "black-forest-labs/FLUX.1-dev";
const TOKENIZER: &str = "lmz/mt5-tokenizers";

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/flux")
}

/// The tiny FLUX pipeline's files, as its repository has them.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for root in ["dev", "shared"] {
        let root = fixtures().join(root);
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                    files.insert(name, fs::read(&path).unwrap());
                }
            }
        }
    }
    files
}

/// A hub with `flux1-dev-Q4_0.gguf` in `owner/model`, and these files in FLUX.1-dev's repository.
fn hub(dev: Option<BTreeMap<String, Vec<u8>>>) -> HubServer {
    let root = tempfile::tempdir().unwrap();
    gguf(&root.path().join("x.gguf"), &flux("", GgmlDType::Q4_0));
    let tokenizer = ("t5-v1_1-xxl.tokenizer.json".to_owned(), b"{}".to_vec());
    HubServer::start(Behaviour {
        files: [(
            "flux1-dev-Q4_0.gguf".to_owned(),
            fs::read(root.path().join("x.gguf")).unwrap(),
        )]
        .into(),
        others: [(DEV, dev), (TOKENIZER, Some([tokenizer].into()))].into(),
        ..Behaviour::default()
    })
}

fn open(server: &HubServer, cache: &TempDir, offline: bool) -> Result<ModelFiles, WeightsError> {
    let mut spec = sd_worker::weights::ModelSpec::built_in();
    spec.place = Place::Hub(HubRef {
        id: "owner/model".to_owned(),
        revision: "main".to_owned(),
        file: Some("flux1-dev-Q4_0.gguf".to_owned()),
    });
    let config = || {
        Ok(HubConfig {
            endpoint: server.endpoint.clone(),
            cache: cache.path().to_owned(),
            token: None,
            offline,
            first_wait: Duration::from_millis(1),
        })
    };
    ModelFiles::open_from(&spec, &OpenOptions::default(), &config, &mut |_| ())
}

#[test]
fn its_vae_and_text_encoders_are_fetched_and_its_transformer_is_not() {
    let (server, cache) = (hub(Some(repository())), tempfile::tempdir().unwrap());
    let files = open(&server, &cache, false).unwrap();
    assert_eq!(files.family(), Family::FluxDev);
    assert_eq!(files.source(), "owner/model/flux1-dev-Q4_0.gguf");
    assert_eq!(files.quantization(), Some("q4_0"));
    for component in [Component::Vae, Component::TextEncoder, Component::TextEncoder2] {
        assert!(files.has(component) && !files.tensors(component).unwrap().names().is_empty());
    }
    let asked = server.requests().join("\n");
    assert!(asked.contains("vae/") && asked.contains("text_encoder_2/"), "{asked}");
    assert!(!asked.contains("transformer/"), "{asked}");
    // The cache is enough the next time.
    assert!(open(&server, &cache, true).unwrap().has(Component::TextEncoder2));
}

#[test]
fn a_gated_repository_of_parts_says_what_is_wanted_from_it() {
    let (server, cache) = (hub(None), tempfile::tempdir().unwrap());
    let text = open(&server, &cache, false).map(|_| ()).unwrap_err().to_string();
    for part in [
        "`owner/model/flux1-dev-Q4_0.gguf` brings no vae",
        "black-forest-labs/FLUX.1-dev is gated",
        "HF_TOKEN",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
