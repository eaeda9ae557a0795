//! Models from the hub, against a local server that speaks its paths.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use sd_worker::weights::hub::{Hub, HubConfig, HubError};
use sd_worker::weights::{Component, HubRef, ModelFiles, OpenOptions, Precision};
use tempfile::TempDir;

use crate::hub_server::{Behaviour, COMMIT, HubServer};
use crate::support::{f32s, model_folder, safetensors};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

fn repository() -> BTreeMap<String, Vec<u8>> {
    let root = tempfile::tempdir().unwrap();
    model_folder(root.path());
    let mut files = BTreeMap::new();
    gather(root.path(), root.path(), &mut files);
    files.insert("README.md".to_owned(), b"hello".to_vec());
    files.insert("v1-5-pruned.ckpt".to_owned(), vec![0; 64]);
    files.insert("unet/diffusion_pytorch_model.bin".to_owned(), vec![0; 64]);
    files.insert(
        "unet/diffusion_pytorch_model.fp16.safetensors".to_owned(),
        safetensors(&[f32s("half", &[1], &[1.0])]),
    );
    files
}

fn gather(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
}

struct Place {
    cache: TempDir,
    server: HubServer,
}

impl Place {
    fn new(behaviour: Behaviour) -> Self {
        Self {
            cache: tempfile::tempdir().unwrap(),
            server: HubServer::start(behaviour),
        }
    }

    fn hub(&self, token: Option<&str>, offline: bool) -> Hub {
        Hub::new(HubConfig {
            endpoint: self.server.endpoint.clone(),
            cache: self.cache.path().to_owned(),
            token: token.map(str::to_owned),
            offline,
            first_wait: Duration::from_millis(1),
        })
    }

    fn get(&self) -> Result<std::path::PathBuf, HubError> {
        self.hub(None, false)
            .model(&model("main"), Precision::Full, &mut |_| ())
    }
}

fn model(revision: &str) -> HubRef {
    HubRef {
        id: "owner/model".to_owned(),
        revision: revision.to_owned(),
        file: None,
    }
}

#[test]
fn only_what_is_needed_is_fetched_into_the_cache_s_layout() {
    let place = Place::new(Behaviour {
        files: repository(),
        ..Behaviour::default()
    });
    let mut last = (0, 0);
    let folder = place
        .hub(None, false)
        .model(&model("refs/pr/1"), Precision::Half, &mut |progress| {
            last = (progress.done, progress.total);
        })
        .unwrap();
    assert_eq!(
        folder,
        place.cache.path().join("models--owner--model/snapshots").join(COMMIT)
    );
    assert!(last.0 == last.1 && last.1 > 0, "{last:?}");
    let reference = place.cache.path().join("models--owner--model/refs/refs/pr/1");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
    assert!(
        fs::read_link(folder.join("unet/config.json"))
            .unwrap()
            .starts_with("../../../blobs")
    );
    let got: Vec<_> = place
        .server
        .requests()
        .into_iter()
        .filter(|line| line.starts_with("GET /owner"))
        .collect();
    for unwanted in ["README", ".ckpt", ".bin", UNET] {
        assert!(!got.iter().any(|line| line.contains(unwanted)), "{unwanted}: {got:?}");
    }
    let files = ModelFiles::open_path(
        &folder,
        &OpenOptions {
            precision: Precision::Half,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    assert_eq!(files.tensors(Component::Unet).unwrap().names(), ["half"]);

    let before = place.server.requests().len();
    let again = place
        .hub(None, false)
        .model(&model("refs/pr/1"), Precision::Half, &mut |_| ())
        .unwrap();
    assert_eq!(again, folder);
    assert_eq!(
        place.server.requests().len(),
        before + 1,
        "only the revision is looked up again"
    );
}

#[test]
fn shards_are_fetched_by_their_index() {
    let mut files = repository();
    let unet = files.remove(UNET).unwrap();
    files.retain(|name, _| !name.contains("fp16"));
    let part = "diffusion_pytorch_model-00001-of-00001.safetensors";
    files.insert(format!("unet/{part}"), unet);
    let index = format!(r#"{{"weight_map": {{"conv_in.bias": "{part}"}}}}"#);
    files.insert(format!("{UNET}.index.json"), index.into_bytes());
    let place = Place::new(Behaviour {
        files,
        ..Behaviour::default()
    });
    let files = ModelFiles::open_path(&place.get().unwrap(), &OpenOptions::default()).unwrap();
    assert_eq!(files.tensors(Component::Unet).unwrap().names(), ["conv_in.bias"]);
}

#[test]
fn redirects_are_followed_and_the_token_stays_with_the_hub() {
    let behaviour = Behaviour {
        files: repository(),
        redirect: true,
        gated_for: Some("hf_good"),
        ..Behaviour::default()
    };
    let place = Place::new(behaviour);
    let folder = place
        .hub(Some("hf_good"), false)
        .model(&model("main"), Precision::Full, &mut |_| ())
        .unwrap();
    assert_eq!(fs::read(folder.join(UNET)).unwrap(), repository()[UNET]);
    let requests = place.server.requests();
    let elsewhere: Vec<_> = requests.iter().filter(|line| line.contains("/cdn/")).collect();
    assert!(
        !elsewhere.is_empty() && elsewhere.iter().all(|line| !line.contains("+token")),
        "{elsewhere:?}"
    );
    assert!(
        requests
            .iter()
            .filter(|line| line.contains("/owner/"))
            .all(|line| line.contains("+token"))
    );
}

#[test]
fn a_broken_transfer_goes_on_where_it_ended() {
    let mut files = repository();
    let big: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
    files.insert(UNET.to_owned(), safetensors(&[f32s("big", &[big.len()], &big)]));
    let whole = files[UNET].clone();
    let place = Place::new(Behaviour {
        files,
        break_after: Some(150_000),
        ..Behaviour::default()
    });
    let folder = place.get().unwrap();
    assert_eq!(fs::read(folder.join(UNET)).unwrap(), whole);
    let ranges: Vec<_> = place
        .server
        .requests()
        .into_iter()
        .filter(|line| line.contains(UNET) && line.contains('['))
        .collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(
        ranges[0].contains("[150000-]") && ranges[1].contains("[300000-]"),
        "{ranges:?}"
    );
}

#[test]
fn a_transfer_of_an_earlier_run_goes_on_and_a_bad_one_starts_over() {
    let place = Place::new(Behaviour {
        files: repository(),
        ..Behaviour::default()
    });
    let whole = repository()[UNET].clone();
    let blobs = place.cache.path().join("models--owner--model/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join("etag-unet-diffusion-pytorch-model-safetensors.incomplete");
    fs::write(&part, &whole[..10]).unwrap();
    let folder = place.get().unwrap();
    assert_eq!(fs::read(folder.join(UNET)).unwrap(), whole);
    assert!(
        place
            .server
            .requests()
            .iter()
            .any(|line| line.contains(UNET) && line.ends_with("[10-]"))
    );
    assert!(!part.exists());

    let ignoring = Place::new(Behaviour {
        files: repository(),
        no_ranges: true,
        ..Behaviour::default()
    });
    let blobs = ignoring.cache.path().join("models--owner--model/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(
        blobs.join("etag-unet-diffusion-pytorch-model-safetensors.incomplete"),
        b"xx",
    )
    .unwrap();
    fs::write(blobs.join("etag-vae-config-json.incomplete"), vec![0; 500]).unwrap();
    let folder = ignoring.get().unwrap();
    assert_eq!(fs::read(folder.join(UNET)).unwrap(), whole);
    assert_eq!(fs::read(folder.join("vae/config.json")).unwrap(), b"{}");
}

#[test]
fn a_transfer_that_never_ends_well_says_how_far_it_came() {
    let mut files = repository();
    files.insert(UNET.to_owned(), safetensors(&[f32s("big", &[1000], &[1.0; 1000])]));
    let place = Place::new(Behaviour {
        files,
        stop_at: Some(700),
        ..Behaviour::default()
    });
    let error = place.get().unwrap_err();
    assert!(matches!(&error, HubError::BrokenOff { at: 700, .. }), "{error}");
    let parts = fs::read_dir(place.cache.path().join("models--owner--model/blobs")).unwrap();
    assert!(
        parts.flatten().any(|entry| entry.metadata().unwrap().len() == 700),
        "what came is kept"
    );
}

#[test]
fn a_gated_repository_says_how_to_get_in() {
    let place = Place::new(Behaviour {
        files: repository(),
        gated_for: Some("hf_good"),
        ..Behaviour::default()
    });
    let error = place.get().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HubError::Gated { .. }), "{text}");
    assert!(
        text.contains("owner/model is gated") && text.contains("HF_TOKEN") && text.contains("/settings/tokens"),
        "{text}"
    );
    let error = place
        .hub(Some("hf_bad"), false)
        .model(&model("main"), Precision::Full, &mut |_| ())
        .unwrap_err();
    assert!(matches!(error, HubError::Denied { .. }), "{error}");
    assert!(!error.to_string().contains("hf_bad"));
}

#[test]
fn what_the_hub_does_not_have_is_named() {
    let place = Place::new(Behaviour {
        files: repository(),
        ..Behaviour::default()
    });
    let other = HubRef {
        id: "owner/nothing".to_owned(),
        ..model("main")
    };
    for asked in [model("v9"), other] {
        let error = place
            .hub(None, false)
            .model(&asked, Precision::Full, &mut |_| ())
            .unwrap_err();
        assert!(matches!(error, HubError::NotFound { .. }), "{error}");
        assert!(
            error.to_string().contains(&asked.id) && error.to_string().contains(&asked.revision),
            "{error}"
        );
    }
    let file = HubRef {
        file: Some("no.gguf".to_owned()),
        ..model("main")
    };
    let error = place.hub(None, false).file(&file, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("no.gguf"), "{error}");
}

#[test]
fn offline_uses_the_cache_and_names_what_it_lacks() {
    let place = Place::new(Behaviour {
        files: repository(),
        ..Behaviour::default()
    });
    let offline = || {
        place
            .hub(None, true)
            .model(&model("main"), Precision::Full, &mut |_| ())
    };
    let error = offline().unwrap_err();
    assert!(
        matches!(error, HubError::Offline { .. }) && error.to_string().contains("owner/model"),
        "{error}"
    );
    assert!(place.server.requests().is_empty());
    let folder = place.get().unwrap();
    let before = place.server.requests().len();
    assert_eq!(offline().unwrap(), folder);
    assert_eq!(place.server.requests().len(), before);
    fs::remove_file(folder.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    fs::remove_file(folder.join("unet/config.json")).unwrap();
    let text = offline().unwrap_err().to_string();
    assert!(text.contains("unet/config.json"), "{text}");
}

#[test]
fn without_a_network_a_complete_cache_is_enough() {
    let place = Place::new(Behaviour {
        files: repository(),
        ..Behaviour::default()
    });
    let nowhere = || {
        Hub::new(HubConfig {
            endpoint: "http://127.0.0.1:9".to_owned(),
            cache: place.cache.path().to_owned(),
            token: None,
            offline: false,
            first_wait: Duration::from_millis(1),
        })
    };
    let error = nowhere()
        .model(&model("main"), Precision::Full, &mut |_| ())
        .unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    let folder = place.get().unwrap();
    assert_eq!(
        nowhere().model(&model("main"), Precision::Full, &mut |_| ()).unwrap(),
        folder
    );
}

#[test]
fn one_file_of_a_repository() {
    let mut files = repository();
    files.insert("gguf/flux-Q4_0.gguf".to_owned(), vec![7; 1000]);
    let place = Place::new(Behaviour {
        files,
        redirect: true,
        ..Behaviour::default()
    });
    let file = HubRef {
        file: Some("gguf/flux-Q4_0.gguf".to_owned()),
        ..model("main")
    };
    let path = place.hub(None, false).file(&file, &mut |_| ()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), vec![7; 1000]);
    assert_eq!(place.hub(None, true).file(&file, &mut |_| ()).unwrap(), path);
}

#[test]
fn two_workers_may_fetch_the_same_model() {
    let place = Place::new(Behaviour {
        files: repository(),
        redirect: true,
        ..Behaviour::default()
    });
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| place.get().unwrap())).collect();
        for run in runs {
            let folder = run.join().unwrap();
            assert_eq!(fs::read(folder.join(UNET)).unwrap(), repository()[UNET]);
        }
    });
}
