//! The small model inside the program, so that a fresh machine paints without a download.

use super::{Folder, ModelFiles, OpenOptions, Tree, WeightsError};

/// Its files, as a folder in diffusers' layout; listed by the build script.
const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/built_in.rs"));

/// Opens the model inside the program.
///
/// # Errors
/// The program was built without one (feature `embedded-model`).
pub(super) fn files() -> Result<ModelFiles, WeightsError> {
    if FILES.is_empty() {
        return Err(WeightsError::NoBuiltIn);
    }
    let tree = Tree::Memory {
        name: "built in",
        files: FILES,
    };
    Ok(ModelFiles {
        source: "built in".to_owned(),
        ..ModelFiles::from_folder(&Folder::built_in(tree), &OpenOptions::default())?
    })
}
