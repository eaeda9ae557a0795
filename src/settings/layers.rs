//! Merging the layers and checking the result.

use std::path::PathBuf;
use std::str::FromStr;

use toml::{Table, Value};

use super::{KEYS, Key, Settings};

/// The compiled-in defaults, each with its explanation.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// Names of the settings file in the environment.
const FILE_VARIABLE: &str = "SD_WORKER_CONFIG";

/// What flags say, and which file to read.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Values that stand between the defaults and the file, as `(path, value)`: a binary's own device.
    pub base: Vec<(&'static str, String)>,
    /// Flags as `(path, value)`.
    pub flags: Vec<(&'static str, String)>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is missing or unreadable.
    #[error("settings file {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or has a setting of the wrong type or name.
    #[error("{origin}: {message}")]
    Parse {
        /// Which layer.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// A value that is not allowed.
    #[error("setting {path}: {message}")]
    Value {
        /// `section.name`.
        path: String,
        /// The value and what is allowed.
        message: String,
    },
}

/// Reads a setting that is one of a few words.
pub(super) fn choice<T>(path: &str, text: &str) -> Result<T, SettingsError>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| wrong(path, error.to_string()))
}

/// See [`Settings::load`].
pub(super) fn load(flags: &Overrides, env: impl Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
    let defaults = parse_table(DEFAULTS, "compiled-in defaults")?;
    let mut tree = defaults.clone();
    for (path, text) in &flags.base {
        put(&mut tree, path, text, "this binary")?;
    }
    if let Some(file) = flags.file.clone().or_else(|| env(FILE_VARIABLE).map(PathBuf::from)) {
        let text = std::fs::read_to_string(&file).map_err(|source| SettingsError::Read {
            path: file.clone(),
            source,
        })?;
        let origin = file.display().to_string();
        merge(&mut tree, parse_table(&text, &origin)?, &defaults, &origin)?;
    }
    for key in KEYS {
        if let Some((name, text)) = from_env(key, &env) {
            put(&mut tree, key.path, &text, &name)?;
        }
    }
    for (path, text) in &flags.flags {
        put(&mut tree, path, text, "flag")?;
    }
    check_ranges(&tree)?;
    let settings: Settings = Value::Table(tree)
        .try_into()
        .map_err(|error: toml::de::Error| SettingsError::Parse {
            origin: "settings".into(),
            message: error.message().to_owned(),
        })?;
    check(&settings)?;
    Ok(settings)
}

fn from_env(key: &Key, env: &impl Fn(&str) -> Option<String>) -> Option<(String, String)> {
    key.env_names()
        .into_iter()
        .find_map(|name| env(&name).filter(|text| !text.is_empty()).map(|text| (name, text)))
}

fn parse_table(text: &str, origin: &str) -> Result<Table, SettingsError> {
    text.parse::<Table>().map_err(|error| SettingsError::Parse {
        origin: origin.to_owned(),
        message: error.to_string(),
    })
}

/// Lays a file over the tree; every section and name in it must be among the defaults, with a value of the same type.
fn merge(tree: &mut Table, file: Table, defaults: &Table, origin: &str) -> Result<(), SettingsError> {
    for (section, value) in file {
        let known = defaults.get(&section).and_then(Value::as_table);
        let (Some(known), Value::Table(values)) = (known, value) else {
            let all = defaults.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(in_layer(origin, format!("unknown section `{section}`; allowed: {all}")));
        };
        for (name, value) in values {
            let path = format!("{section}.{name}");
            let Some(default) = known.get(&name) else {
                let all = known.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(in_layer(
                    origin,
                    format!("unknown setting `{path}`; allowed in [{section}]: {all}"),
                ));
            };
            let value = match (default, value) {
                (Value::Float(_), Value::Integer(number)) => Value::Float(number as f64),
                (_, value) => value,
            };
            if !default.same_type(&value) {
                let message = format!(
                    "setting `{path}` is a {}, it must be a {}",
                    value.type_str(),
                    default.type_str()
                );
                return Err(in_layer(origin, message));
            }
            if let Some(Value::Table(target)) = tree.get_mut(&section) {
                target.insert(name, value);
            }
        }
    }
    Ok(())
}

/// Puts a value that came as text into the tree, read as the type of the default it replaces.
fn put(tree: &mut Table, path: &str, text: &str, origin: &str) -> Result<(), SettingsError> {
    let place = path
        .split_once('.')
        .and_then(|(section, name)| tree.get_mut(section)?.get_mut(name));
    let Some(place) = place else {
        return Err(in_layer(origin, format!("unknown setting `{path}`")));
    };
    *place = match place {
        Value::Integer(_) => parsed::<i64>(path, text, origin, "a whole number").map(Value::Integer)?,
        Value::Float(_) => parsed::<f64>(path, text, origin, "a number").map(Value::Float)?,
        _ => Value::String(text.to_owned()),
    };
    Ok(())
}

fn parsed<T: FromStr>(path: &str, text: &str, origin: &str, kind: &str) -> Result<T, SettingsError> {
    text.trim()
        .parse()
        .map_err(|_| wrong(path, format!("`{text}` (from {origin}) is not {kind}")))
}

/// Numbers that are bounded, with the least and the most that each may be.
const RANGES: &[(&str, f64, f64)] = &[
    ("server.port", 0.0, 65_535.0),
    ("server.threads", 1.0, 64.0),
    ("server.max_body_mb", 1.0, 4096.0),
    ("server.keep_alive_s", 1.0, 3600.0),
    ("server.grace_s", 0.0, 86_400.0),
    ("compute.threads", 0.0, 1024.0),
    ("compute.niceness", 0.0, 19.0),
    ("queue.capacity", 1.0, 100_000.0),
    ("queue.keep_jobs", 1.0, 1_000_000.0),
    ("queue.keep_mb", 1.0, 1_048_576.0),
    ("queue.keep_s", 1.0, 31_536_000.0),
    ("limits.max_side", 64.0, 16_384.0),
    ("limits.max_images", 1.0, 256.0),
    ("limits.max_image_mb", 1.0, 4096.0),
    ("limits.max_image_megapixels", 1.0, 1000.0),
    ("hive.heartbeat_s", 0.01, 86_400.0),
    ("hive.retry_first_ms", 1.0, 3_600_000.0),
    ("hive.retry_longest_ms", 1.0, 86_400_000.0),
];

fn check_ranges(tree: &Table) -> Result<(), SettingsError> {
    for &(path, least, most) in RANGES {
        let value = match lookup(tree, path) {
            Some(Value::Integer(number)) => *number as f64,
            Some(Value::Float(number)) => *number,
            _ => continue,
        };
        // Also false for NaN.
        if !(least..=most).contains(&value) {
            return Err(wrong(
                path,
                format!("{value} is out of range; allowed: {least} to {most}"),
            ));
        }
    }
    match lookup(tree, "log.format").and_then(Value::as_str) {
        Some("pretty" | "json") => Ok(()),
        other => Err(wrong(
            "log.format",
            format!("`{}` is not allowed; allowed: pretty, json", other.unwrap_or_default()),
        )),
    }
}

fn lookup<'a>(tree: &'a Table, path: &str) -> Option<&'a Value> {
    let (section, name) = path.split_once('.')?;
    tree.get(section)?.get(name)
}

fn check(settings: &Settings) -> Result<(), SettingsError> {
    if settings.worker.id.is_empty() || settings.worker.id.chars().any(char::is_control) {
        return Err(wrong("worker.id", "give a name without control characters".into()));
    }
    for (path, url) in [
        ("hive.callback_url", &settings.hive.callback_url),
        ("server.public_url", &settings.server.public_url),
    ] {
        if !url.is_empty() && !is_http_url(url) {
            return Err(wrong(
                path,
                format!("`{url}` is not a URL; write http://host:port or https://host:port"),
            ));
        }
    }
    settings.load_options().map(|_| ())
}

fn is_http_url(text: &str) -> bool {
    text.parse::<ureq::http::Uri>()
        .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some())
}

fn wrong(path: &str, message: String) -> SettingsError {
    SettingsError::Value {
        path: path.to_owned(),
        message,
    }
}

fn in_layer(origin: &str, message: String) -> SettingsError {
    SettingsError::Parse {
        origin: origin.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::domain::load::DeviceChoice;
    use crate::settings::LogFormat;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn file(text: &str) -> (tempfile::TempDir, Overrides) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.toml");
        std::fs::write(&path, text).unwrap();
        let overrides = Overrides {
            file: Some(path),
            ..Overrides::default()
        };
        (folder, overrides)
    }

    #[test]
    fn defaults_are_valid_and_every_key_has_one_row_and_an_explanation() {
        let settings = Settings::defaults().unwrap();
        assert_eq!(settings.server.port, 7833);
        assert_eq!(settings.server.host, "127.0.0.1");
        let table = parse_table(DEFAULTS, "defaults").unwrap();
        let paths: HashSet<String> = table
            .iter()
            .flat_map(|(section, values)| {
                let names = values.as_table().unwrap().keys();
                names.map(move |name| format!("{section}.{name}"))
            })
            .collect();
        let rows: HashSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
        assert_eq!(paths, rows);
        let mut above = "";
        for line in DEFAULTS.lines() {
            let is_setting = !line.starts_with(['#', '[']) && !line.is_empty();
            assert!(!is_setting || above.starts_with('#'), "{line} is not explained");
            above = line;
        }
    }

    #[test]
    fn flags_and_names_in_the_environment_are_unique() {
        let mut seen = HashSet::new();
        for key in KEYS {
            assert!(seen.insert(key.flag) && seen.insert(key.env), "{}", key.path);
        }
    }

    #[test]
    fn each_layer_overrides_the_one_before() {
        let (_folder, mut overrides) = file("[server]\nport = 1\nhost = \"0.0.0.0\"\n[hive]\nheartbeat_s = 5\n");
        let from_file = Settings::load(&overrides, none).unwrap();
        assert_eq!((from_file.server.port, from_file.hive.heartbeat_s), (1, 5.0));

        let env = |name: &str| (name == "PORT").then(|| "2".to_owned());
        assert_eq!(Settings::load(&overrides, env).unwrap().server.port, 2);

        let env = |name: &str| match name {
            "PORT" => Some("2".to_owned()),
            "SD_WORKER_PORT" => Some("3".to_owned()),
            _ => None,
        };
        assert_eq!(Settings::load(&overrides, env).unwrap().server.port, 3);

        overrides.flags = vec![("server.port", "4".to_owned())];
        let settings = Settings::load(&overrides, env).unwrap();
        assert_eq!((settings.server.port, settings.server.host.as_str()), (4, "0.0.0.0"));
    }

    #[test]
    fn the_file_may_be_named_by_the_environment() {
        let (_folder, overrides) = file("[log]\nformat = \"json\"\n");
        let path = overrides.file.unwrap().display().to_string();
        let env = |name: &str| (name == "SD_WORKER_CONFIG").then(|| path.clone());
        let settings = Settings::load(&Overrides::default(), env).unwrap();
        assert_eq!(settings.log.format, LogFormat::Json);
    }

    #[test]
    fn a_binarys_device_is_a_default_that_others_override() {
        let mut overrides = Overrides {
            base: vec![("model.device", "cpu".into())],
            ..Overrides::default()
        };
        let device = |overrides: &Overrides| Settings::load(overrides, none).unwrap().load_options().unwrap().device;
        assert_eq!(device(&overrides), DeviceChoice::Cpu);
        overrides.flags = vec![("model.device", "cuda:1".into())];
        assert_eq!(device(&overrides), DeviceChoice::Cuda(1));
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        for (text, expected) in [
            ("[sever]\nport = 1", "unknown section `sever`"),
            ("[server]\nprot = 1", "unknown setting `server.prot`"),
            (
                "[server]\nport = \"x\"",
                "`server.port` is a string, it must be a integer",
            ),
            ("[server]\nport = 70000", "setting server.port: 70000 is out of range"),
            ("[server]\nport = ", "line 2"),
            ("server = 1", "unknown section `server`"),
        ] {
            let (_folder, overrides) = file(text);
            let error = Settings::load(&overrides, none).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let missing = Overrides {
            file: Some("/nowhere/at/all.toml".into()),
            ..Overrides::default()
        };
        let error = Settings::load(&missing, none).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all.toml"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (path, text, expected) in [
            ("queue.capacity", "0", "allowed: 1 to"),
            ("queue.capacity", "-1", "queue.capacity: -1 is out of range"),
            ("server.port", "http", "is not a whole number"),
            ("compute.niceness", "20", "allowed: 0 to 19"),
            ("hive.heartbeat_s", "nan", "out of range"),
            ("hive.callback_url", "localhost:7000", "write http://"),
            ("model.device", "tpu", "cuda:N"),
            ("model.dtype", "int8", "bf16"),
            ("model.residency", "leave", "offload"),
            ("model.step_cache", "7", "threshold"),
            ("log.format", "xml", "pretty"),
            ("worker.id", "", "give a name"),
        ] {
            let overrides = Overrides {
                flags: vec![(path, text.to_owned())],
                ..Overrides::default()
            };
            let error = Settings::load(&overrides, none).unwrap_err().to_string();
            assert!(error.contains(expected), "{path} = {text:?}: {error}");
        }
    }
}
