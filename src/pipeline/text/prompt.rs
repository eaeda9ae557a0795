//! The A1111 prompt syntax: which weight each piece of a prompt has, and where it breaks into a new chunk.
//!
//! `(a)` multiplies by 1.1, `[a]` divides by 1.1, `(a:1.3)` multiplies by 1.3, brackets nest, `\(` is a bracket, and
//! the word `BREAK` starts a new chunk of 75 tokens. Follows `parse_prompt_attention` of A1111's `prompt_parser.py`.

/// A stretch of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text and the factor its embeddings are multiplied by.
    Text {
        /// The words, brackets and escapes removed.
        text: String,
        /// 1 for plain text.
        weight: f32,
    },
    /// What follows starts a new chunk.
    Break,
}

const ROUND: f32 = 1.1;
const SQUARE: f32 = 1.0 / 1.1;

/// The whole prompt as text of weight 1 (`prompt_syntax: plain`).
pub fn plain(prompt: &str) -> Vec<Piece> {
    vec![Piece::Text {
        text: prompt.to_owned(),
        weight: 1.0,
    }]
}

/// Reads brackets, weights, escapes and `BREAK`. Brackets that do not match are text or run to the end, never errors.
pub fn weighted(prompt: &str) -> Vec<Piece> {
    let mut parser = Parser::default();
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let used = match first {
            '\\' => parser.escape(rest),
            '(' => parser.open(Bracket::Round),
            '[' => parser.open(Bracket::Square),
            ')' => parser.close(Bracket::Round, ROUND, ")"),
            ']' => parser.close(Bracket::Square, SQUARE, "]"),
            ':' => parser.weight(rest),
            _ => parser.words(rest),
        };
        rest = &rest[used..];
    }
    parser.finish()
}

#[derive(Clone, Copy)]
enum Bracket {
    Round,
    Square,
}

#[derive(Default)]
struct Parser {
    pieces: Vec<Piece>,
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Parser {
    fn stack(&mut self, bracket: Bracket) -> &mut Vec<usize> {
        match bracket {
            Bracket::Round => &mut self.round,
            Bracket::Square => &mut self.square,
        }
    }

    fn push(&mut self, text: &str) {
        self.pieces.push(Piece::Text {
            text: text.to_owned(),
            weight: 1.0,
        });
    }

    fn escape(&mut self, rest: &str) -> usize {
        match rest[1..].chars().next() {
            Some(c @ ('(' | ')' | '[' | ']' | '\\')) => {
                self.push(c.encode_utf8(&mut [0; 4]));
                2
            }
            _ => 1,
        }
    }

    fn open(&mut self, bracket: Bracket) -> usize {
        let at = self.pieces.len();
        self.stack(bracket).push(at);
        1
    }

    fn close(&mut self, bracket: Bracket, factor: f32, text: &str) -> usize {
        match self.stack(bracket).pop() {
            Some(start) => self.multiply(start, factor),
            None => self.push(text),
        }
        1
    }

    /// `:1.3)` closes a round bracket with that weight; any other colon is text.
    fn weight(&mut self, rest: &str) -> usize {
        if let (Some((factor, used)), false) = (read_weight(rest), self.round.is_empty()) {
            if let Some(start) = self.round.pop() {
                self.multiply(start, factor);
            }
            return used;
        }
        self.push(":");
        1
    }

    fn words(&mut self, rest: &str) -> usize {
        let used = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
        let mut start = 0;
        for (from, to) in breaks(&rest[..used]) {
            self.push(&rest[start..from]);
            self.pieces.push(Piece::Break);
            start = to;
        }
        self.push(&rest[start..used]);
        used
    }

    fn multiply(&mut self, start: usize, factor: f32) {
        for piece in &mut self.pieces[start..] {
            if let Piece::Text { weight, .. } = piece {
                *weight *= factor;
            }
        }
    }

    fn finish(mut self) -> Vec<Piece> {
        for start in std::mem::take(&mut self.round) {
            self.multiply(start, ROUND);
        }
        for start in std::mem::take(&mut self.square) {
            self.multiply(start, SQUARE);
        }
        merge(self.pieces)
    }
}

/// `: 1.3 )` as the weight and the bytes it takes.
fn read_weight(rest: &str) -> Option<(f32, usize)> {
    let close = rest.find(')')?;
    let number = rest[1..close].trim();
    let plain_number = number.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'+' | b'-'));
    let weight: f32 = number.parse().ok().filter(|_| plain_number)?;
    Some((weight, close + 1))
}

/// Byte ranges of the word `BREAK` with the white space around it.
fn breaks(text: &str) -> Vec<(usize, usize)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, word) in text.match_indices("BREAK") {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        if before.ends_with(is_word) || after.starts_with(is_word) {
            continue;
        }
        found.push((before.trim_end().len(), text.len() - after.trim_start().len()));
    }
    found
}

/// Joins neighbours of the same weight and drops empty text, so that words cut by an escape are tokenised as one.
fn merge(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut merged: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match (merged.last_mut(), piece) {
            (_, Piece::Text { text, .. }) if text.is_empty() => {}
            (
                Some(Piece::Text { text, weight }),
                Piece::Text {
                    text: more,
                    weight: same,
                },
            ) if *weight == same => {
                text.push_str(&more);
            }
            (_, piece) => merged.push(piece),
        }
    }
    if merged.is_empty() { plain("") } else { merged }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prompt: &str, expected: &[(&str, f32)]) {
        let found = weighted(prompt);
        assert_eq!(found.len(), expected.len(), "{prompt}: {found:?}");
        for (piece, (words, factor)) in found.iter().zip(expected) {
            match piece {
                Piece::Text { text, weight } => {
                    assert_eq!(text, words, "{prompt}");
                    assert!((weight - factor).abs() < 1e-5, "{prompt}: {weight} is not {factor}");
                }
                Piece::Break => assert_eq!(*words, "BREAK", "{prompt}"),
            }
        }
    }

    /// The examples in the documentation of A1111's parser.
    #[test]
    fn reads_the_examples_of_a1111() {
        check("normal text", &[("normal text", 1.0)]);
        check(
            "an (important) word",
            &[("an ", 1.0), ("important", 1.1), (" word", 1.0)],
        );
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check(
            r"a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn break_starts_a_new_chunk_and_is_no_part_of_a_word() {
        check("a cat BREAK a dog", &[("a cat", 1.0), ("BREAK", 1.0), ("a dog", 1.0)]);
        check("(a BREAK b:1.5)", &[("a", 1.5), ("BREAK", 1.0), ("b", 1.5)]);
        check("BREAKFAST at DAYBREAK", &[("BREAKFAST at DAYBREAK", 1.0)]);
    }

    #[test]
    fn what_is_no_syntax_is_text() {
        check("", &[("", 1.0)]);
        check("a:b) 3:2", &[("a:b) 3:2", 1.0)]);
        check("(a:b)", &[("a:b", 1.1)]);
        check("(a:1.2.3)", &[("a:1.2.3", 1.1)]);
        check("(a:-0.5)", &[("a", -0.5)]);
        check("(ü:1.2) ] )", &[("ü", 1.2), (" ] )", 1.0)]);
        check(r"c:\x", &[("c:x", 1.0)]);
    }
}
