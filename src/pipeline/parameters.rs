//! The `parameters` text of a picture, as A1111 writes and reads it: the prompt, the negative prompt, then one line of
//! `Name: value` pairs.

use std::fmt;
use std::str::FromStr;

use crate::domain::picture::Size;
use crate::domain::sampling::{Sampler, Schedule};

/// What is written about one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// The prompt as it was given.
    pub prompt: String,
    /// Left out when empty.
    pub negative_prompt: String,
    /// Steps of the full schedule.
    pub steps: u32,
    /// Written with A1111's label.
    pub sampler: Sampler,
    /// Written with A1111's label.
    pub schedule: Schedule,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// The seed of this very picture.
    pub seed: u64,
    /// Size of the picture.
    pub size: Size,
    /// Name of the model.
    pub model: String,
    /// Strength, for img2img and inpaint.
    pub denoising_strength: Option<f32>,
    /// Written when above 1, as A1111 does.
    pub clip_skip: u32,
    /// More pairs for the end of the line, such as `Lora hashes`.
    pub extra: Vec<(String, String)>,
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.prompt)?;
        if !self.negative_prompt.is_empty() {
            writeln!(f, "Negative prompt: {}", self.negative_prompt)?;
        }
        let mut pairs = vec![
            ("Steps", self.steps.to_string()),
            ("Sampler", self.sampler.label().to_owned()),
            ("Schedule type", self.schedule.label().to_owned()),
            ("CFG scale", self.cfg_scale.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", self.size.to_string()),
            ("Model", quote(&self.model)),
        ];
        if let Some(strength) = self.denoising_strength {
            pairs.push(("Denoising strength", strength.to_string()));
        }
        if self.clip_skip > 1 {
            pairs.push(("Clip skip", self.clip_skip.to_string()));
        }
        pairs.extend(self.extra.iter().map(|(name, value)| (name.as_str(), quote(value))));
        pairs.push(("Version", concat!("sd-worker ", env!("CARGO_PKG_VERSION")).to_owned()));
        let line: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        f.write_str(&line.join(", "))
    }
}

/// A value as it stands, or as a JSON string when it would break the line.
fn quote(value: &str) -> String {
    if value.contains([',', '\n', ':']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

/// What a `parameters` text says, whoever wrote it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParsedParameters {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt, empty where there is none.
    pub negative_prompt: String,
    /// The pairs of the last line, in order.
    pub fields: Vec<(String, String)>,
}

impl ParsedParameters {
    /// The value of a field such as `Seed`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl FromStr for ParsedParameters {
    type Err = std::convert::Infallible;

    /// Reads any text: what does not look like A1111's last line belongs to the prompt, as A1111 has it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut lines: Vec<&str> = text.trim().lines().collect();
        let fields = lines.last().map(|line| pairs(line)).unwrap_or_default();
        if fields.len() >= 3 {
            lines.pop();
        }
        let (mut prompt, mut negative) = (Vec::new(), Vec::new());
        let mut in_negative = false;
        for line in lines {
            let line = line.trim();
            let rest = line.strip_prefix("Negative prompt:");
            in_negative |= rest.is_some();
            let target = if in_negative { &mut negative } else { &mut prompt };
            target.push(rest.unwrap_or(line).trim());
        }
        Ok(Self {
            prompt: prompt.join("\n"),
            negative_prompt: negative.join("\n"),
            fields: if fields.len() >= 3 { fields } else { Vec::new() },
        })
    }
}

/// The `Name: value` pairs of a line; a value in double quotes is a JSON string and may hold commas.
fn pairs(line: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some((name, after)) = rest.split_once(':') {
        let after = after.trim_start();
        let (value, next) = value(after);
        let name = name.trim_matches([' ', ',']);
        if is_name(name) {
            found.push((name.to_owned(), value));
        }
        rest = next;
    }
    found
}

/// Splits a value off the front of a line.
fn value(text: &str) -> (String, &str) {
    if text.starts_with('"') {
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<String>();
        if let Some(Ok(value)) = stream.next() {
            let rest = &text[stream.byte_offset()..];
            return (value, rest.trim_start_matches([',', ' ']));
        }
    }
    match text.split_once(',') {
        Some((value, rest)) => (value.trim().to_owned(), rest),
        None => (text.trim().to_owned(), ""),
    }
}

/// A1111's `\w[\w \-/]+`.
fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    name.chars().count() > 1 && name.starts_with(word) && name.chars().all(|c| word(c) || matches!(c, ' ' | '-' | '/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Parameters {
        Parameters {
            prompt: "a cat: big, (red:1.2)\nsecond line".to_owned(),
            negative_prompt: "blurry, dog".to_owned(),
            steps: 20,
            sampler: Sampler::Dpmpp2m,
            schedule: Schedule::Karras,
            cfg_scale: 7.0,
            seed: u64::MAX,
            size: Size {
                width: 512,
                height: 768,
            },
            model: "v1-5".to_owned(),
            denoising_strength: Some(0.75),
            clip_skip: 2,
            extra: vec![("Lora hashes".to_owned(), "toy: 12, other: \"3\"".to_owned())],
        }
    }

    #[test]
    fn writes_the_lines_that_a1111_writes() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            parameters().to_string(),
            format!(
                "a cat: big, (red:1.2)\nsecond line\nNegative prompt: blurry, dog\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, \
                 CFG scale: 7, Seed: 18446744073709551615, Size: 512x768, Model: v1-5, Denoising strength: 0.75, Clip skip: 2, \
                 Lora hashes: \"toy: 12, other: \\\"3\\\"\", Version: sd-worker {version}"
            )
        );
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let written = parameters();
        let read: ParsedParameters = written.to_string().parse().unwrap();
        assert_eq!(read.prompt, written.prompt);
        assert_eq!(read.negative_prompt, written.negative_prompt);
        assert_eq!(read.get("Seed"), Some("18446744073709551615"));
        assert_eq!(read.get("Sampler"), Some("DPM++ 2M"));
        assert_eq!(read.get("Lora hashes"), Some("toy: 12, other: \"3\""));
        assert_eq!(read.get("Version").map(|v| v.starts_with("sd-worker")), Some(true));
    }

    #[test]
    fn reads_what_a1111_wrote() {
        let text = "masterpiece\nNegative prompt: worst\nquality\nSteps: 28, Sampler: Euler a, CFG scale: 6.5, Seed: 7, Size: 832x1216, Model hash: e3c47aed, VAE hash: 235745, Hires upscaler: R-ESRGAN 4x+";
        let read: ParsedParameters = text.parse().unwrap();
        assert_eq!(read.negative_prompt, "worst\nquality");
        assert_eq!(read.get("Model hash"), Some("e3c47aed"));
        assert_eq!(read.get("Hires upscaler"), Some("R-ESRGAN 4x+"));
        assert_eq!(read.fields.len(), 8);
    }

    #[test]
    fn a_text_without_a_parameter_line_is_all_prompt() {
        let read: ParsedParameters = "just: a prompt".parse().unwrap();
        assert_eq!(read.prompt, "just: a prompt");
        assert!(read.fields.is_empty());
    }
}
