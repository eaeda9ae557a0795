//! The header of a safetensors file, checked before a single number is read.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::storage::Storage;
use super::{StoredType, WeightsError};

/// Where one tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How its numbers are stored.
    pub stored: StoredType,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Number of bytes.
    pub len: usize,
}

/// What a header says.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// The tensors by name.
    pub tensors: HashMap<String, Entry>,
    /// The free texts under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// As the safetensors library has it.
const MOST_HEADER: u64 = 100_000_000;

/// Reads and checks the header of a safetensors file.
///
/// # Errors
/// [`WeightsError::Damaged`] says what is wrong with the file.
pub fn read_header(storage: &Storage) -> Result<Header, WeightsError> {
    let path = storage.path();
    let damaged = |reason: String| WeightsError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let total = storage.size();
    if total < 8 {
        return Err(damaged(format!("it has {total} bytes and is no safetensors file")));
    }
    let mut length = [0_u8; 8];
    storage.read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if !(2..=MOST_HEADER).contains(&length) {
        return Err(damaged(format!(
            "it announces a header of {length} bytes, so it is no safetensors file"
        )));
    }
    let data = length + 8;
    if data > total {
        return Err(damaged(format!(
            "it announces a header of {length} bytes but has only {total}; it was cut short, get it again"
        )));
    }
    let mut text = vec![0_u8; length as usize];
    storage.read_at(8, &mut text)?;
    let raw: RawHeader =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("its header cannot be read: {error}")))?;
    let tensors = check(raw.tensors, data, total, path)?;
    Ok(Header {
        tensors,
        metadata: raw.metadata,
    })
}

fn check(
    raw: Vec<(String, RawEntry)>,
    data: u64,
    total: u64,
    path: &Path,
) -> Result<HashMap<String, Entry>, WeightsError> {
    let mut ranges = Vec::with_capacity(raw.len());
    let mut tensors = HashMap::with_capacity(raw.len());
    for (name, entry) in raw {
        let entry = entry
            .check(&name, data, total)
            .map_err(|reason| WeightsError::damaged(path, reason))?;
        ranges.push((entry.offset, entry.len as u64, name.clone()));
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(WeightsError::damaged(path, format!("tensor `{name}` is there twice")));
        }
    }
    ranges.sort_unstable();
    let mut end = data;
    for (offset, len, name) in ranges {
        if offset != end {
            let what = if offset < end {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(WeightsError::damaged(
                path,
                format!("the range of tensor `{name}` {what}"),
            ));
        }
        end = offset + len;
    }
    if end != total {
        let extra = total - end;
        return Err(WeightsError::damaged(
            path,
            format!("{extra} bytes at its end belong to no tensor"),
        ));
    }
    Ok(tensors)
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    fn check(self, name: &str, data: u64, total: u64) -> Result<Entry, String> {
        let (stored, bits) = stored_type(&self.dtype)
            .ok_or_else(|| format!("tensor `{name}` has the type `{}`, which is not known", self.dtype))?;
        let (start, end) = self.data_offsets;
        if start > end {
            return Err(format!("the range of tensor `{name}` ends before it starts"));
        }
        if end > total - data {
            return Err(format!(
                "tensor `{name}` ends at byte {}, but the file has only {total}; it was cut short, get it again",
                end.saturating_add(data)
            ));
        }
        let bytes = self
            .shape
            .iter()
            .try_fold(1_u64, |product, &d| product.checked_mul(d))
            .and_then(|count| count.checked_mul(bits))
            .filter(|bits| bits % 8 == 0)
            .map(|bits| bits / 8);
        if bytes != Some(end - start) {
            return Err(format!(
                "tensor `{name}` of type {} and shape {:?} does not fit its range of {} bytes",
                self.dtype,
                self.shape,
                end - start
            ));
        }
        let usize_of = |n: u64| usize::try_from(n).map_err(|_| format!("tensor `{name}` is too big for this machine"));
        let shape = self.shape.iter().map(|&d| usize_of(d)).collect::<Result<_, _>>()?;
        Ok(Entry {
            stored,
            shape,
            offset: data + start,
            len: usize_of(end - start)?,
        })
    }
}

/// The stored type and its width in bits.
fn stored_type(name: &str) -> Option<(StoredType, u64)> {
    Some(match name {
        "F64" => (StoredType::F64, 64),
        "F32" => (StoredType::F32, 32),
        "F16" => (StoredType::F16, 16),
        "BF16" => (StoredType::Bf16, 16),
        "F8_E4M3" => (StoredType::F8E4M3, 8),
        "F8_E5M2" => (StoredType::F8E5M2, 8),
        "I64" => (StoredType::I64, 64),
        "I32" => (StoredType::I32, 32),
        "U64" => (StoredType::Other("U64"), 64),
        "U32" => (StoredType::Other("U32"), 32),
        "U16" => (StoredType::Other("U16"), 16),
        "I16" => (StoredType::Other("I16"), 16),
        "U8" => (StoredType::Other("U8"), 8),
        "I8" => (StoredType::Other("I8"), 8),
        "BOOL" => (StoredType::Other("BOOL"), 8),
        "C64" => (StoredType::Other("C64"), 64),
        "F8_E8M0" => (StoredType::Other("F8_E8M0"), 8),
        "F8_E4M3FNUZ" => (StoredType::Other("F8_E4M3FNUZ"), 8),
        "F8_E5M2FNUZ" => (StoredType::Other("F8_E5M2FNUZ"), 8),
        "F6_E2M3" => (StoredType::Other("F6_E2M3"), 6),
        "F6_E3M2" => (StoredType::Other("F6_E3M2"), 6),
        "F4" => (StoredType::Other("F4"), 4),
        _ => return None,
    })
}

/// The header's JSON as it stands: names in order, so that one that comes twice is seen.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader {
                    tensors: Vec::new(),
                    metadata: BTreeMap::new(),
                };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        // Some writers put numbers and lists here, though the format wants texts.
                        let values: BTreeMap<String, serde_json::Value> = map.next_value()?;
                        header.metadata = values.into_iter().map(|(key, value)| (key, text(value))).collect();
                    } else {
                        let entry = map
                            .next_value()
                            .map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Names)
    }
}

fn text(value: serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}
