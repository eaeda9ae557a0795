//! Lists the files of the model that is built into the program, for `src/weights/built_in.rs`.

use std::path::{Path, PathBuf};
use std::{env, fs};

const MODEL: &str = "models/emoji";
const FOLDERS: &[&str] = &["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"];
const ENDINGS: &[&str] = &["json", "safetensors", "txt"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={MODEL}");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join(MODEL);
    let mut list = String::from("&[\n");
    if env::var_os("CARGO_FEATURE_EMBEDDED_MODEL").is_some() && root.join("model_index.json").is_file() {
        for folder in FOLDERS {
            for path in files(&root.join(folder))? {
                let inner = path.strip_prefix(&root)?.to_string_lossy().replace('\\', "/");
                // The compiler knows where the checkout is now, also after it was moved with its build folder.
                let path = format!("/{MODEL}/{inner}");
                list += &format!(
                    "    ({inner:?}, include_bytes!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?})) as &[u8]),\n"
                );
            }
        }
    }
    list += "]\n";
    fs::write(Path::new(&env::var("OUT_DIR")?).join("built_in.rs"), list)?;
    Ok(())
}

/// The model's files right below a folder, sorted.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        if path.is_file() && ENDINGS.contains(&ending.as_ref()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
