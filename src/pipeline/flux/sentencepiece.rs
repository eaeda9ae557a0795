//! Reads a SentencePiece unigram model (`spiece.model`) into the tokenizers library's form.
//!
//! The file is a protocol buffer; only the fields that a T5 vocabulary needs are read (`sentencepiece_model.proto`:
//! pieces 1, trainer 2 with the model type 3, normalizer 3 with the compiled rules 2).

use base64::Engine;
use serde_json::{Value, json};

/// Tokens `<extra_id_99>` to `<extra_id_0>` that T5 adds behind the file's own.
const EXTRA: usize = 100;
const UNIGRAM: u64 = 1;

/// `tokenizer.json` as transformers' `T5Tokenizer` would write it for this model.
///
/// # Errors
/// The bytes are no SentencePiece model, or not a unigram one; the message says which.
pub fn tokenizer_json(bytes: &[u8]) -> Result<Value, String> {
    let mut pieces: Vec<(String, f32)> = Vec::new();
    let (mut charsmap, mut kind) = (Vec::new(), UNIGRAM);
    for field in Fields::new(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => pieces.push(read_piece(piece)?),
            (2, Field::Bytes(trainer)) => kind = number(trainer, 3)?.unwrap_or(UNIGRAM),
            (3, Field::Bytes(normalizer)) => charsmap = bytes_of(normalizer, 2)?.unwrap_or_default().to_vec(),
            _ => {}
        }
    }
    if pieces.len() < 3 {
        return Err("it has no pieces; it is no SentencePiece model".to_owned());
    }
    if kind != UNIGRAM {
        return Err(format!("its model type is {kind}; only unigram (1) is supported"));
    }
    let unknown = pieces
        .iter()
        .position(|(text, _)| text == "<unk>")
        .ok_or("it has no piece `<unk>`")?;
    let own = pieces.len();
    pieces.extend((0..EXTRA).rev().map(|i| (format!("<extra_id_{i}>"), 0.0)));
    let special = |id: usize, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let added: Vec<Value> = pieces
        .iter()
        .enumerate()
        .filter(|(id, (text, _))| *id >= own || ["<pad>", "</s>", "<unk>"].contains(&text.as_str()))
        .map(|(id, (text, _))| special(id, text))
        .collect();
    let rules = base64::engine::general_purpose::STANDARD.encode(&charsmap);
    let normalizer = if charsmap.is_empty() {
        Value::Null
    } else {
        json!({"type": "Precompiled", "precompiled_charsmap": rules})
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        ]},
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": false},
    }))
}

fn read_piece(bytes: &[u8]) -> Result<(String, f32), String> {
    let (mut text, mut score) = (None, 0.0);
    for field in Fields::new(bytes) {
        match field? {
            (1, Field::Bytes(bytes)) => text = Some(String::from_utf8(bytes.to_vec()).map_err(|e| e.to_string())?),
            (2, Field::Fixed32(bits)) => score = f32::from_bits(bits),
            _ => {}
        }
    }
    Ok((text.ok_or("a piece has no text")?, score))
}

fn number(message: &[u8], wanted: u64) -> Result<Option<u64>, String> {
    let mut found = None;
    for field in Fields::new(message) {
        if let (field, Field::Number(value)) = field?
            && field == wanted
        {
            found = Some(value);
        }
    }
    Ok(found)
}

fn bytes_of(message: &[u8], wanted: u64) -> Result<Option<&[u8]>, String> {
    let mut found = None;
    for field in Fields::new(message) {
        if let (field, Field::Bytes(bytes)) = field?
            && field == wanted
        {
            found = Some(bytes);
        }
    }
    Ok(found)
}

enum Field<'a> {
    Number(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of one protocol buffer message, in their order.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { break };
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is longer than 64 bits".to_owned())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("it ends inside a field")?;
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), String> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Fixed64
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|e| e.to_string())?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let mut bits = [0; 4];
                bits.copy_from_slice(self.take(4)?);
                Field::Fixed32(u32::from_le_bytes(bits))
            }
            other => return Err(format!("a field has the unknown wire type {other}")),
        };
        Ok((key >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_model_is_refused() {
        for bytes in [
            &b""[..],
            b"\x0a",
            b"\x0a\xff\x01",
            b"not a protocol buffer",
            &[0xff; 40],
        ] {
            assert!(tokenizer_json(bytes).is_err(), "{bytes:?}");
        }
    }
}
