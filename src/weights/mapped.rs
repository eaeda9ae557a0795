//! A source seen through a key map: the model's names over a file that names or lays out its tensors differently.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use super::{Located, RawTensor, StoredType, TensorSource, WeightsError};

/// How one tensor of the model is made from one tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Name in the file.
    pub name: String,
    /// These rows of it only: one part of a fused projection.
    pub rows: Option<Range<usize>>,
    /// What else is to be done with it.
    pub layout: Layout,
}

/// How the numbers are rearranged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Not at all.
    #[default]
    Same,
    /// A 1x1 convolution as a linear layer: dimensions of size 1 after the second are dropped.
    Squeezed,
    /// A linear layer as a 1x1 convolution: two dimensions of size 1 are added.
    Unsqueezed,
    /// A matrix stored the other way round.
    Transposed,
    /// First and second half of the rows change places (FLUX's last shift and scale).
    HalvesSwapped,
}

impl Piece {
    /// The whole tensor as it is.
    pub fn whole(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            rows: None,
            layout: Layout::Same,
        }
    }

    /// Some rows of a fused tensor.
    pub fn rows(name: impl Into<String>, rows: Range<usize>) -> Self {
        Self {
            name: name.into(),
            rows: Some(rows),
            layout: Layout::Same,
        }
    }

    /// Whether the numbers stay in the file's order.
    fn keeps_order(&self) -> bool {
        matches!(self.layout, Layout::Same | Layout::Squeezed | Layout::Unsqueezed)
    }

    /// The same piece with another layout.
    #[must_use]
    pub fn with(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }
}

/// A source behind a key map. Names that are not in the map are not seen.
pub struct Mapped {
    inner: Rc<dyn TensorSource>,
    pieces: HashMap<String, Piece>,
}

impl Mapped {
    /// Shows `inner` through `pieces`, which go from the model's name to the place in `inner`.
    #[must_use]
    pub fn new(inner: Rc<dyn TensorSource>, pieces: HashMap<String, Piece>) -> Self {
        Self { inner, pieces }
    }

    /// Shows the tensors of `inner` whose names start with `prefix`, without it.
    #[must_use]
    pub fn below(inner: Rc<dyn TensorSource>, prefix: &str) -> Self {
        let pieces = inner
            .names()
            .into_iter()
            .filter_map(|name| Some((name.strip_prefix(prefix)?.to_owned(), Piece::whole(name.clone()))))
            .collect();
        Self { inner, pieces }
    }
}

impl TensorSource for Mapped {
    fn names(&self) -> Vec<String> {
        self.pieces.keys().cloned().collect()
    }

    fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)> {
        let piece = self.pieces.get(name)?;
        let (mut shape, stored) = self.inner.describe(&piece.name)?;
        if let (Some(rows), Some(first)) = (&piece.rows, shape.first_mut()) {
            *first = rows.len();
        }
        let stored = if piece.layout == Layout::Transposed {
            transposed_type(stored)
        } else {
            stored
        };
        Some((laid_out(piece.layout, shape), stored))
    }

    fn locate(&self, name: &str, rows: Option<Range<usize>>) -> Result<Option<Located<'_>>, WeightsError> {
        let Some(piece) = self.pieces.get(name).filter(|piece| piece.keeps_order()) else {
            return Ok(None);
        };
        let rows = match (&piece.rows, rows) {
            (None, rows) => rows,
            (Some(ours), None) => Some(ours.clone()),
            (Some(ours), Some(rows)) if rows.start <= rows.end && rows.end <= ours.len() => {
                Some(ours.start + rows.start..ours.start + rows.end)
            }
            (Some(_), Some(_)) => return Ok(None),
        };
        self.inner.locate(&piece.name, rows)
    }

    fn read(&self, name: &str) -> Result<RawTensor, WeightsError> {
        let piece = self
            .pieces
            .get(name)
            .ok_or_else(|| WeightsError::Missing { name: name.to_owned() })?;
        let raw = match &piece.rows {
            Some(rows) => self.inner.read_rows(&piece.name, rows.clone())?,
            None => self.inner.read(&piece.name)?,
        };
        let shape = laid_out(piece.layout, raw.shape.clone());
        let bytes = match piece.layout {
            Layout::Same | Layout::Squeezed | Layout::Unsqueezed => raw.bytes,
            Layout::HalvesSwapped => {
                let mut bytes = raw.bytes;
                let half = bytes.len() / 2;
                bytes.rotate_left(half);
                bytes
            }
            Layout::Transposed => return transposed(&piece.name, &raw, shape),
        };
        Ok(RawTensor {
            stored: raw.stored,
            shape,
            bytes,
        })
    }
}

fn laid_out(layout: Layout, mut shape: Vec<usize>) -> Vec<usize> {
    match layout {
        Layout::Same | Layout::HalvesSwapped => {}
        Layout::Squeezed => {
            while shape.len() > 2 && shape.last() == Some(&1) {
                shape.pop();
            }
        }
        Layout::Unsqueezed => {
            if shape.len() == 2 {
                shape.extend([1, 1]);
            }
        }
        Layout::Transposed => shape.reverse(),
    }
    shape
}

/// The matrix the other way round; blocks run along rows, so that they are expanded first.
fn transposed(name: &str, raw: &RawTensor, shape: Vec<usize>) -> Result<RawTensor, WeightsError> {
    let wrong = || WeightsError::Type {
        name: name.to_owned(),
        found: format!("{:?}", raw.stored),
    };
    let &[rows, columns] = raw.shape.as_slice() else {
        return Err(wrong());
    };
    let expanded: Vec<u8> = match raw.stored {
        StoredType::Ggml(_) => raw.to_f32(name)?.iter().flat_map(|n| n.to_le_bytes()).collect(),
        _ => Vec::new(),
    };
    let from = if expanded.is_empty() { &raw.bytes } else { &expanded };
    let width = from.len().checked_div(rows * columns).ok_or_else(wrong)?;
    let mut bytes = Vec::with_capacity(from.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * width;
            bytes.extend_from_slice(&from[at..at + width]);
        }
    }
    Ok(RawTensor {
        stored: transposed_type(raw.stored),
        shape,
        bytes,
    })
}

fn transposed_type(stored: StoredType) -> StoredType {
    match stored {
        StoredType::Ggml(_) => StoredType::F32,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;

    impl TensorSource for One {
        fn names(&self) -> Vec<String> {
            vec!["x".to_owned()]
        }

        fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)> {
            (name == "x").then(|| (vec![2, 3], StoredType::F8E4M3))
        }

        fn read(&self, _: &str) -> Result<RawTensor, WeightsError> {
            Ok(RawTensor {
                stored: StoredType::F8E4M3,
                shape: vec![2, 3],
                bytes: vec![1, 2, 3, 4, 5, 6],
            })
        }
    }

    fn seen(piece: Piece) -> (Vec<usize>, Vec<u8>) {
        let mapped = Mapped::new(Rc::new(One), HashMap::from([("y".to_owned(), piece)]));
        let raw = mapped.read("y").unwrap();
        assert_eq!(mapped.describe("y").unwrap().0, raw.shape);
        (raw.shape, raw.bytes)
    }

    #[test]
    fn lays_out_as_asked() {
        assert_eq!(seen(Piece::whole("x")), (vec![2, 3], vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(seen(Piece::rows("x", 1..2)), (vec![1, 3], vec![4, 5, 6]));
        assert_eq!(
            seen(Piece::whole("x").with(Layout::Transposed)),
            (vec![3, 2], vec![1, 4, 2, 5, 3, 6])
        );
        assert_eq!(
            seen(Piece::whole("x").with(Layout::HalvesSwapped)),
            (vec![2, 3], vec![4, 5, 6, 1, 2, 3])
        );
        assert_eq!(seen(Piece::whole("x").with(Layout::Unsqueezed)).0, vec![2, 3, 1, 1]);
    }

    #[test]
    fn rows_that_are_not_there_are_refused() {
        let mapped = Mapped::new(Rc::new(One), HashMap::from([("y".to_owned(), Piece::rows("x", 1..3))]));
        assert!(matches!(mapped.read("y"), Err(WeightsError::Shape { .. })));
    }
}
