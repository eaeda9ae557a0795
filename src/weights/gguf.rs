//! Tensors of GGUF files, plain and in blocks.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Every count, length and range is checked against
//! the file before anything is allocated for it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::gguf_header::{GgufHeader, RawInfo, read_gguf_header};
use super::storage::Storage;
use super::{Located, StoredType, TensorSource, WeightsError};

/// The tensors of one GGUF file.
#[derive(Debug)]
pub struct Gguf {
    storage: Storage,
    tensors: HashMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    stored: StoredType,
    shape: Vec<usize>,
    offset: u64,
    len: usize,
}

impl Gguf {
    /// Opens a file; reads and checks its header only.
    ///
    /// # Errors
    /// It cannot be read or is damaged, or has a tensor of a type that is not known.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let storage = Storage::open(path)?;
        let header = read_gguf_header(&storage)?;
        let damaged = |reason: String| WeightsError::damaged(path, reason);
        let mut tensors = HashMap::with_capacity(header.tensors.len());
        let mut ranges = Vec::with_capacity(header.tensors.len());
        for info in &header.tensors {
            let entry = entry(info, &header, storage.size()).map_err(&damaged)?;
            ranges.push((entry.offset, entry.len as u64, info.name.as_str()));
            if tensors.insert(info.name.clone(), entry).is_some() {
                return Err(damaged(format!("tensor `{}` is there twice", info.name)));
            }
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            if let [(start, len, _), (next, _, name)] = pair
                && start + len > *next
            {
                return Err(damaged(format!(
                    "the range of tensor `{name}` overlaps the tensor before it"
                )));
            }
        }
        Ok(Self {
            storage,
            tensors,
            metadata: header.texts,
        })
    }

    /// The texts in the header, such as `general.architecture`.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The block type that most of the weights have, as GGUF users write it: `q4_0`, `q8_0`, `q4_k`.
    #[must_use]
    pub fn quantization(&self) -> Option<String> {
        let mut bytes: HashMap<String, usize> = HashMap::new();
        for entry in self.tensors.values() {
            if let Some(name) = quantization_of(entry.stored) {
                *bytes.entry(name).or_default() += entry.len;
            }
        }
        bytes
            .into_iter()
            .max_by_key(|(name, bytes)| (*bytes, name.clone()))
            .map(|(name, _)| name)
    }
}

/// The block type of weights that are all stored as `stored`; `None` if they are plain numbers.
pub(super) fn quantization_of(stored: StoredType) -> Option<String> {
    match stored {
        StoredType::Ggml(kind) => Some(type_name(kind)),
        _ => None,
    }
}

/// A block type as GGUF users write it.
fn type_name(kind: GgmlDType) -> String {
    let name = format!("{kind:?}").to_ascii_lowercase();
    match name.strip_suffix('k') {
        Some(bits) => format!("{bits}_k"),
        None => name,
    }
}

fn entry(info: &RawInfo, header: &GgufHeader, total: u64) -> Result<Entry, String> {
    let name = &info.name;
    let (stored, block, size) = stored_type(info.kind).ok_or_else(|| {
        format!(
            "tensor `{name}` has the type {}, which is not known",
            kind_name(info.kind)
        )
    })?;
    let count = info
        .shape
        .iter()
        .try_fold(1_u64, |product, &d| product.checked_mul(d as u64));
    let whole = info.shape.last().is_none_or(|&row| (row as u64).is_multiple_of(block));
    let count = count.filter(|_| whole).ok_or_else(|| {
        format!(
            "tensor `{name}` of shape {:?} does not consist of blocks of {block} numbers",
            info.shape
        )
    })?;
    let misfit = || format!("tensor `{name}` ends after the end of the file; it was cut short, get it again");
    let len = (count / block).checked_mul(size).ok_or_else(misfit)?;
    if !info.offset.is_multiple_of(header.alignment) {
        return Err(format!(
            "tensor `{name}` does not start at a multiple of {}",
            header.alignment
        ));
    }
    let offset = header.data.checked_add(info.offset).ok_or_else(misfit)?;
    if offset.checked_add(len).is_none_or(|end| end > total) {
        return Err(misfit());
    }
    // Converters flatten tensors whose rows are no multiple of a block, and note the shape that they had.
    let shape = match header.shapes.get(name) {
        Some(noted) if noted.iter().map(|&d| d as u64).product::<u64>() == count => noted.clone(),
        Some(noted) => {
            return Err(format!(
                "tensor `{name}` of shape {:?} cannot be of shape {noted:?}",
                info.shape
            ));
        }
        None => info.shape.clone(),
    };
    let len = usize::try_from(len).map_err(|_| misfit())?;
    Ok(Entry {
        stored,
        shape,
        offset,
        len,
    })
}

/// The stored type, numbers of a block, bytes of a block.
fn stored_type(kind: u32) -> Option<(StoredType, u64, u64)> {
    let blocks = |kind: GgmlDType| {
        Some((
            StoredType::Ggml(kind),
            kind.block_size() as u64,
            kind.type_size() as u64,
        ))
    };
    match kind {
        0 => Some((StoredType::F32, 1, 4)),
        1 => Some((StoredType::F16, 1, 2)),
        2 => blocks(GgmlDType::Q4_0),
        3 => blocks(GgmlDType::Q4_1),
        6 => blocks(GgmlDType::Q5_0),
        7 => blocks(GgmlDType::Q5_1),
        8 => blocks(GgmlDType::Q8_0),
        10 => blocks(GgmlDType::Q2K),
        11 => blocks(GgmlDType::Q3K),
        12 => blocks(GgmlDType::Q4K),
        13 => blocks(GgmlDType::Q5K),
        14 => blocks(GgmlDType::Q6K),
        24 => Some((StoredType::Other("I8"), 1, 1)),
        25 => Some((StoredType::Other("I16"), 1, 2)),
        26 => Some((StoredType::I32, 1, 4)),
        27 => Some((StoredType::I64, 1, 8)),
        28 => Some((StoredType::F64, 1, 8)),
        30 => Some((StoredType::Bf16, 1, 2)),
        _ => None,
    }
}

/// Names of types that other programs write and this one does not read.
fn kind_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return other.to_string(),
    };
    format!("{name} ({kind})")
}

impl TensorSource for Gguf {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn describe(&self, name: &str) -> Option<(Vec<usize>, StoredType)> {
        self.tensors.get(name).map(|entry| (entry.shape.clone(), entry.stored))
    }

    fn locate(&self, name: &str, rows: Option<Range<usize>>) -> Result<Option<Located<'_>>, WeightsError> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| WeightsError::Missing { name: name.to_owned() })?;
        let what = (entry.stored, entry.shape.as_slice());
        Located::new(&self.storage, name, what, (entry.offset, entry.len), rows).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_as_users_write_them() {
        assert_eq!(type_name(GgmlDType::Q4_0), "q4_0");
        assert_eq!(type_name(GgmlDType::Q6K), "q6_k");
        assert_eq!(kind_name(20), "IQ4_NL (20)");
    }
}
