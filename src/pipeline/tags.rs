//! What a prompt asks for besides its words.

use super::PipelineError;
use super::text::{TagError, Untagged, extract};
use crate::domain::request::{GenerationRequest, PromptSyntax};

/// The prompt without its LoRA tags, and what they name.
///
/// # Errors
/// A tag cannot be followed; the message quotes it.
pub fn read_tags(request: &GenerationRequest, warnings: &mut Vec<String>) -> Result<Untagged, PipelineError> {
    if request.prompt_syntax == PromptSyntax::Plain {
        return Ok(Untagged {
            text: request.prompt.clone(),
            loras: Vec::new(),
        });
    }
    let found = extract(&request.prompt).map_err(|error: TagError| PipelineError::Unsupported {
        field: "prompt",
        message: error.to_string(),
    })?;
    if found.text.split_whitespace().any(|word| word == "AND") {
        warnings.push("`AND` in the prompt is read as a word: prompts are not composed".to_owned());
    }
    Ok(found)
}
