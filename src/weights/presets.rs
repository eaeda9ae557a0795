//! From what a user names (a preset, a hub id, a path) to where the model is and what it defaults to.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer};

use super::WeightsError;
use super::folder::is_pickle;
use crate::domain::model::{Defaults, Family};
use crate::domain::picture::Size;
use crate::domain::sampling::{Sampler, Schedule};

/// The presets as they are compiled in.
pub const PRESETS: &str = include_str!("../../config/presets.toml");

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Inside the program.
    BuiltIn,
    /// On the hub.
    Hub(HubRef),
    /// A folder or file on disk.
    Path(PathBuf),
}

/// A repository of the hub, or one file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRef {
    /// `owner/name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// One file of it, if only that is meant: `owner/name/model.gguf`.
    pub file: Option<String>,
}

/// A model that a user named.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Name that a request's `model` may give.
    pub name: String,
    /// Other names that mean the same model.
    pub aliases: Vec<String>,
    /// Where it is.
    pub place: Place,
    /// Its family, where it is known before the files are read.
    pub family: Option<Family>,
    /// What it defaults to.
    pub defaults: PartialDefaults,
}

/// Defaults that a preset or a model's files give; the rest comes from the family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartialDefaults {
    /// Size of the picture.
    #[serde(deserialize_with = "size")]
    pub size: Option<Size>,
    /// Denoising steps.
    pub steps: Option<u32>,
    /// Guidance scale.
    pub guidance_scale: Option<f32>,
    /// Sampler.
    pub sampler: Option<Sampler>,
    /// Schedule.
    pub schedule: Option<Schedule>,
    /// CLIP layers from the end.
    pub clip_skip: Option<u32>,
}

impl PartialDefaults {
    /// Fills what is left out from `base`.
    #[must_use]
    pub fn over(self, base: Defaults) -> Defaults {
        Defaults {
            size: self.size.unwrap_or(base.size),
            steps: self.steps.unwrap_or(base.steps),
            guidance_scale: self.guidance_scale.unwrap_or(base.guidance_scale),
            sampler: self.sampler.unwrap_or(base.sampler),
            schedule: self.schedule.unwrap_or(base.schedule),
            clip_skip: self.clip_skip.unwrap_or(base.clip_skip),
        }
    }
}

/// A family's defaults.
#[must_use]
pub fn family_defaults(family: Family) -> Defaults {
    let own = TABLE.family.get(family.name()).copied().unwrap_or_default();
    own.over(Defaults {
        size: Size {
            width: 512,
            height: 512,
        },
        steps: 25,
        guidance_scale: 7.5,
        sampler: Sampler::Euler,
        schedule: Schedule::Default,
        clip_skip: 1,
    })
}

/// Names of every preset, in the order of the file.
#[must_use]
pub fn preset_names() -> Vec<&'static str> {
    TABLE.preset.iter().map(|preset| preset.name.as_str()).collect()
}

/// The repository that the parts of a family's models are fetched from: its first preset's.
#[must_use]
pub fn family_repository(family: Family) -> Option<HubRef> {
    let presets = TABLE.preset.iter().filter(|preset| preset.family == Some(family));
    presets
        .filter_map(|preset| {
            Some(HubRef {
                id: preset.repository.clone()?,
                revision: preset.revision.clone(),
                file: None,
            })
        })
        .next()
}

/// Where T5's tokenizer is on the hub.
#[must_use]
pub fn t5_tokenizer() -> HubRef {
    let TokenizerRow {
        repository,
        revision,
        file,
    } = TABLE.t5_tokenizer.clone();
    HubRef {
        id: repository,
        revision,
        file: Some(file),
    }
}

impl ModelSpec {
    /// The model that is built in.
    #[must_use]
    pub fn built_in() -> Self {
        TABLE
            .preset
            .iter()
            .find(|preset| preset.repository.is_none())
            .map_or_else(|| Self::plain("built-in".to_owned(), Place::BuiltIn), Preset::spec)
    }

    fn plain(name: String, place: Place) -> Self {
        Self {
            name,
            aliases: Vec::new(),
            place,
            family: None,
            defaults: PartialDefaults::default(),
        }
    }
}

impl FromStr for ModelSpec {
    type Err = WeightsError;

    /// Reads `NAME | HUB-ID[@REV] | PATH`. A preset's name comes first, then a path that is there, then a hub id.
    fn from_str(text: &str) -> Result<Self, WeightsError> {
        let text = text.trim();
        let folded = fold(text);
        if let Some(preset) = TABLE.preset.iter().find(|preset| preset.answers_to(&folded)) {
            return Ok(preset.spec());
        }
        let path = Path::new(text);
        if !text.is_empty() && path.exists() {
            let stem = if path.is_dir() {
                path.file_name()
            } else {
                path.file_stem()
            };
            let name = stem.map_or_else(|| text.to_owned(), |stem| stem.to_string_lossy().into_owned());
            return Ok(Self::plain(name, Place::Path(path.to_owned())));
        }
        if let Some(hub) = HubRef::read(text) {
            let name = hub.file.as_deref().unwrap_or(&hub.id).to_owned();
            return Ok(Self::plain(name, Place::Hub(hub)));
        }
        Err(WeightsError::UnknownModel {
            text: text.to_owned(),
            presets: preset_names().join(", "),
        })
    }
}

impl HubRef {
    /// Reads `owner/name[@revision]` or `owner/name/file[@revision]`; `None` if it is neither.
    fn read(text: &str) -> Option<Self> {
        let (path, revision) = text.split_once('@').unwrap_or((text, "main"));
        let parts: Vec<&str> = path.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        let revision_fits =
            !revision.is_empty() && revision.split('/').all(|part| word(&part)) && !revision.contains("..");
        if parts.len() < 2 || !parts.iter().all(word) || !revision_fits {
            return None;
        }
        let file = (parts.len() > 2).then(|| parts[2..].join("/"));
        let is_model = |name: &str| name.ends_with(".safetensors") || name.ends_with(".gguf");
        if !file.as_deref().is_none_or(is_model) || is_model(parts[1]) || is_pickle(parts[1]) {
            return None;
        }
        Some(Self {
            id: parts[..2].join("/"),
            revision: revision.to_owned(),
            file,
        })
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    preset: Vec<Preset>,
    t5_tokenizer: TokenizerRow,
    family: HashMap<String, PartialDefaults>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenizerRow {
    repository: String,
    revision: String,
    file: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Preset {
    name: String,
    #[serde(default)]
    aliases: Vec<String>,
    repository: Option<String>,
    #[serde(default = "main")]
    revision: String,
    family: Option<Family>,
    #[serde(default)]
    defaults: PartialDefaults,
}

impl Preset {
    fn answers_to(&self, folded: &str) -> bool {
        let repository = self.repository.as_deref().filter(|_| self.revision == "main");
        let names = self
            .aliases
            .iter()
            .map(String::as_str)
            .chain([self.name.as_str()])
            .chain(repository);
        !folded.is_empty() && names.into_iter().any(|name| fold(name) == folded)
    }

    fn spec(&self) -> ModelSpec {
        let place = match &self.repository {
            Some(id) => Place::Hub(HubRef {
                id: id.clone(),
                revision: self.revision.clone(),
                file: None,
            }),
            None => Place::BuiltIn,
        };
        let mut aliases = self.aliases.clone();
        aliases.extend(self.repository.clone());
        ModelSpec {
            name: self.name.clone(),
            aliases,
            place,
            family: self.family,
            defaults: self.defaults,
        }
    }
}

fn main() -> String {
    "main".to_owned()
}

fn fold(name: &str) -> String {
    name.to_lowercase().replace(['.', '-', '_', ' '], "")
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Size>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// A file that does not parse leaves no presets; a test keeps that from being released.
static TABLE: LazyLock<Table> = LazyLock::new(|| {
    toml::from_str(PRESETS).unwrap_or_else(|_| Table {
        preset: Vec::new(),
        t5_tokenizer: TokenizerRow {
            repository: String::new(),
            revision: main(),
            file: String::new(),
        },
        family: HashMap::new(),
    })
});

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn spec(text: &str) -> ModelSpec {
        text.parse().unwrap()
    }

    fn hub(text: &str) -> (String, String, Option<String>) {
        match spec(text).place {
            Place::Hub(HubRef { id, revision, file }) => (id, revision, file),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_file_parses_and_no_name_belongs_to_two() {
        let table: Table = toml::from_str(PRESETS).unwrap();
        let mut seen = HashSet::new();
        for preset in &table.preset {
            let own: HashSet<_> = preset
                .aliases
                .iter()
                .chain([&preset.name])
                .map(|name| fold(name))
                .collect();
            for name in own {
                assert!(seen.insert(name.clone()), "{name}");
            }
        }
        for family in [
            Family::Sd1,
            Family::Sd2,
            Family::Sdxl,
            Family::FluxDev,
            Family::FluxSchnell,
        ] {
            let row = table.family[family.name()];
            assert!(
                row.size.is_some() && row.steps.is_some() && row.sampler.is_some(),
                "{family}"
            );
        }
    }

    #[test]
    fn every_name_that_a_hive_passes_resolves() {
        let names = "v1-5 v1-5-inpaint v2-1 v2-inpaint xl xl-inpaint turbo flux-dev flux-schnell 1.5 v1.5 V1.5 flux.1-schnell \
                     FLUX.1-dev SDXL-Turbo";
        for name in names.split(' ') {
            let spec = spec(name);
            assert!(matches!(spec.place, Place::Hub(_)), "{name}");
            assert!(spec.family.is_some(), "{name}");
        }
        assert_eq!(spec("V1.5").name, "v1-5");
        assert_eq!(spec("emoji").place, Place::BuiltIn);
        assert_eq!(ModelSpec::built_in().name, "emoji");
    }

    #[test]
    fn a_preset_s_defaults_go_over_its_family_s() {
        let turbo = spec("turbo").defaults.over(family_defaults(Family::Sdxl));
        assert_eq!((turbo.steps, turbo.guidance_scale, turbo.size.width), (1, 0.0, 512));
        let xl = spec("xl").defaults.over(family_defaults(Family::Sdxl));
        assert_eq!((xl.size.width, xl.sampler), (1024, Sampler::Euler));
        assert_eq!(family_defaults(Family::FluxSchnell).steps, 4);
    }

    #[test]
    fn hub_ids_carry_revisions_and_files() {
        let text = |s: &str| s.to_owned();
        assert_eq!(
            hub("lykon/dreamshaper-8"),
            (text("lykon/dreamshaper-8"), text("main"), None)
        );
        assert_eq!(hub("a/b@refs/pr/3"), (text("a/b"), text("refs/pr/3"), None));
        let file = Some(text("flux1-dev-Q4_0.gguf"));
        assert_eq!(
            hub("city96/FLUX.1-dev-gguf/flux1-dev-Q4_0.gguf"),
            (text("city96/FLUX.1-dev-gguf"), text("main"), file)
        );
        assert_eq!(spec("stabilityai/sdxl-turbo").name, "turbo");
    }

    #[test]
    fn paths_are_found_and_nonsense_is_refused_with_the_presets() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dream.safetensors");
        std::fs::write(&file, b"x").unwrap();
        let found = spec(&file.to_string_lossy());
        assert_eq!((found.name.as_str(), found.place), ("dream", Place::Path(file)));
        for wrong in [
            "",
            "nothing",
            "../up/there",
            "/no/such/folder",
            "a/b@",
            "a/../b",
            "a/b.safetensors",
            "a/b@../c",
        ] {
            let error = wrong.parse::<ModelSpec>().unwrap_err().to_string();
            assert!(error.contains("flux-schnell"), "{wrong}: {error}");
        }
    }
}
