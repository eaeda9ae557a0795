//! Where the hub and its cache are, from the environment that the hub's own tools read.

use std::path::PathBuf;
use std::time::Duration;

use hf_hub::Cache;

use super::HubError;

/// The hub's address, the cache, the token, and whether the network may be used.
#[derive(Clone)]
pub struct HubConfig {
    /// Address without a slash at its end.
    pub endpoint: String,
    /// Folder with the `models--owner--name` folders.
    pub cache: PathBuf,
    /// Access token; never logged.
    pub token: Option<String>,
    /// Whether only the cache may be used.
    pub offline: bool,
    /// Wait before a broken transfer goes on; doubles while nothing comes.
    pub first_wait: Duration,
}

impl HubConfig {
    /// From the process's environment.
    ///
    /// # Errors
    /// There is no folder for the cache.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_vars(&|name| std::env::var(name).ok())
    }

    /// From variables as `var` gives them: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// There is no folder for the cache.
    pub fn from_vars(var: &dyn Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| {
            var(name)
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
        };
        let home = set("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("huggingface")))
            .or_else(|| set("HOME").map(|dir| PathBuf::from(dir).join(".cache/huggingface")));
        let cache = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .map(PathBuf::from)
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .ok_or(HubError::NoHome)?;
        let token_file = set("HF_TOKEN_PATH")
            .and_then(|path| std::fs::read_to_string(path).ok())
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty());
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or(token_file)
            .or_else(|| home.and_then(|home| Cache::new(home.join("hub")).token()));
        let offline = set("HF_HUB_OFFLINE")
            .or_else(|| set("TRANSFORMERS_OFFLINE"))
            .is_some_and(|text| is_true(&text));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache,
            token,
            offline,
            first_wait: Duration::from_millis(500),
        })
    }
}

fn is_true(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> HubConfig {
        let find = |name: &str| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        HubConfig::from_vars(&find).unwrap()
    }

    #[test]
    fn reads_what_the_hub_s_tools_read() {
        let plain = config(&[("HOME", "/h")]);
        assert_eq!(plain.cache, PathBuf::from("/h/.cache/huggingface/hub"));
        assert_eq!(
            (plain.endpoint.as_str(), plain.token, plain.offline),
            ("https://huggingface.co", None, false)
        );
        let set = config(&[
            ("HOME", "/h"),
            ("HF_HOME", "/data/hf"),
            ("HF_TOKEN", " hf_x "),
            ("HF_HUB_OFFLINE", "1"),
            ("HF_ENDPOINT", "http://mirror:8080/"),
        ]);
        assert_eq!(set.cache, PathBuf::from("/data/hf/hub"));
        assert_eq!((set.endpoint.as_str(), set.offline), ("http://mirror:8080", true));
        assert_eq!(set.token.as_deref(), Some("hf_x"));
        assert_eq!(
            config(&[("HF_HOME", "/a"), ("HF_HUB_CACHE", "/b")]).cache,
            PathBuf::from("/b")
        );
        assert!(!config(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).offline);
        assert!(matches!(HubConfig::from_vars(&|_| None), Err(HubError::NoHome)));
    }

    #[test]
    fn the_token_may_lie_in_the_home_folder() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let path = home.path().to_string_lossy().into_owned();
        assert_eq!(config(&[("HF_HOME", &path)]).token.as_deref(), Some("hf_file"));
    }
}
