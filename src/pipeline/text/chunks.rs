//! Cuts a prompt into chunks that a CLIP text encoder can read: start token, 75 tokens, end token.
//!
//! A chunk that runs full is cut after its last comma if that is at most 20 tokens back, as A1111 does.

use super::prompt::Piece;
use super::{ClipTokenizer, TextError};

/// Tokens of a chunk between start and end.
const LENGTH: usize = 75;
/// How far back a comma may be for a chunk to be cut there.
const COMMA_REACH: usize = 20;

/// One run of the text encoder: 77 token ids and the factor of each embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Ids, start, end and padding included.
    pub tokens: Vec<u32>,
    /// Factors, 1 for start, end and padding.
    pub weights: Vec<f32>,
}

impl Chunk {
    /// Whether any factor is not 1.
    pub fn is_weighted(&self) -> bool {
        self.weights.iter().any(|weight| *weight != 1.0)
    }
}

/// Tokenises the pieces of a prompt into one chunk or more.
///
/// # Errors
/// The tokenizer refuses the text.
pub fn chunks(tokenizer: &ClipTokenizer, pieces: &[Piece]) -> Result<Vec<Chunk>, TextError> {
    let mut cutter = Cutter {
        tokenizer,
        open: Vec::new(),
        last_comma: None,
        done: Vec::new(),
    };
    for piece in pieces {
        match piece {
            Piece::Break => cutter.close(),
            Piece::Text { text, weight } => {
                for token in tokenizer.encode(text)? {
                    cutter.push(token, *weight);
                }
            }
        }
    }
    if !cutter.open.is_empty() || cutter.done.is_empty() {
        cutter.close();
    }
    Ok(cutter.done)
}

struct Cutter<'a> {
    tokenizer: &'a ClipTokenizer,
    open: Vec<(u32, f32)>,
    last_comma: Option<usize>,
    done: Vec<Chunk>,
}

impl Cutter<'_> {
    fn push(&mut self, token: u32, weight: f32) {
        if Some(token) == self.tokenizer.comma {
            self.last_comma = Some(self.open.len());
        } else if self.open.len() == LENGTH
            && let Some(comma) = self.last_comma.filter(|comma| LENGTH - comma <= COMMA_REACH)
        {
            let moved = self.open.split_off(comma + 1);
            self.close();
            self.open = moved;
        }
        if self.open.len() == LENGTH {
            self.close();
        }
        self.open.push((token, weight));
    }

    fn close(&mut self) {
        let open = std::mem::take(&mut self.open);
        let (bos, eos, pad) = (self.tokenizer.bos, self.tokenizer.eos, self.tokenizer.pad);
        let mut tokens = vec![bos];
        let mut weights = vec![1.0];
        tokens.extend(open.iter().map(|(token, _)| token));
        weights.extend(open.iter().map(|(_, weight)| weight));
        tokens.push(eos);
        tokens.resize(LENGTH + 2, pad);
        weights.resize(LENGTH + 2, 1.0);
        self.last_comma = None;
        self.done.push(Chunk { tokens, weights });
    }
}
