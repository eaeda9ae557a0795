//! The header of a GGUF file.

use std::collections::{BTreeMap, HashMap};

use super::WeightsError;
use super::storage::Storage;

/// What a header says.
#[derive(Debug)]
pub(super) struct GgufHeader {
    /// The tensors as they are listed.
    pub tensors: Vec<RawInfo>,
    /// Values that are texts.
    pub texts: BTreeMap<String, String>,
    /// Shapes that a converter noted for tensors it had to flatten.
    pub shapes: HashMap<String, Vec<usize>>,
    /// Tensors start at multiples of this from `data` on.
    pub alignment: u64,
    /// First byte of the tensors.
    pub data: u64,
}

/// A tensor as it is listed.
#[derive(Debug)]
pub(super) struct RawInfo {
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Number of its type.
    pub kind: u32,
    /// From the start of the tensors.
    pub offset: u64,
}

const MAGIC: [u8; 4] = *b"GGUF";
const MOST_NAME: u64 = 1 << 16;
const MOST_DIMENSIONS: u32 = 4;
const MOST_DEPTH: usize = 4;
const SHAPE_KEY: &str = "comfy.gguf.orig_shape.";

/// Reads a header.
pub(super) fn read_gguf_header(storage: &Storage) -> Result<GgufHeader, WeightsError> {
    let mut reader = Reader {
        storage,
        at: 0,
        buffer: Vec::new(),
        start: 0,
    };
    let magic = reader.bytes::<4>()?;
    if magic != MAGIC {
        return Err(reader.damaged("it does not start as a GGUF file does"));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(reader.damaged(format!("it is of GGUF version {version}; versions 2 and 3 are read")));
    }
    let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
    // The least that an entry takes: name length, type and value; name length, dimensions, type and offset.
    let least = value_count
        .saturating_mul(13)
        .saturating_add(tensor_count.saturating_mul(24));
    if least > storage.size() {
        return Err(reader.damaged(format!(
            "it announces {tensor_count} tensors and {value_count} values, more than it has room for"
        )));
    }
    let (mut texts, mut shapes, mut alignment) = (BTreeMap::new(), HashMap::new(), 32);
    for _ in 0..value_count {
        let key = reader.text(MOST_NAME)?;
        match reader.value(0)? {
            Value::Text(text) => {
                texts.insert(key, text);
            }
            Value::Number(number) if key == "general.alignment" => alignment = number,
            Value::Numbers(numbers) if key.starts_with(SHAPE_KEY) => {
                let shape = numbers
                    .iter()
                    .map(|&n| usize::try_from(n).unwrap_or(usize::MAX))
                    .collect();
                shapes.insert(key[SHAPE_KEY.len()..].to_owned(), shape);
            }
            Value::Number(_) | Value::Numbers(_) | Value::Other => {}
        }
    }
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(reader.damaged(format!(
            "its alignment is {alignment}, which is no sensible power of two"
        )));
    }
    let tensors = (0..tensor_count).map(|_| reader.info()).collect::<Result<_, _>>()?;
    let data = reader.at.next_multiple_of(alignment);
    Ok(GgufHeader {
        tensors,
        texts,
        shapes,
        alignment,
        data,
    })
}

enum Value {
    Number(u64),
    Numbers(Vec<u64>),
    Text(String),
    /// A type that nothing here asks for.
    Other,
}

/// Reads on from where it is, through a buffer.
struct Reader<'a> {
    storage: &'a Storage,
    at: u64,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    start: u64,
}

const BUFFER: u64 = 64 << 10;
/// Arrays longer than this hold vocabularies; nothing here asks for them.
const KEPT_NUMBERS: u64 = 16;

impl Reader<'_> {
    fn damaged(&self, reason: impl Into<String>) -> WeightsError {
        WeightsError::damaged(self.storage.path(), reason)
    }

    fn need(&self, count: u64) -> Result<(), WeightsError> {
        if self.at.checked_add(count).is_some_and(|end| end <= self.storage.size()) {
            return Ok(());
        }
        Err(self.damaged("its header goes beyond its end; it was cut short, get it again"))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        self.need(N as u64)?;
        if self.at < self.start || self.at + N as u64 > self.start + self.buffer.len() as u64 {
            let len = BUFFER.min(self.storage.size() - self.at);
            self.buffer.resize(len as usize, 0);
            self.storage.read_at(self.at, &mut self.buffer)?;
            self.start = self.at;
        }
        let from = (self.at - self.start) as usize;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.buffer[from..from + N]);
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, WeightsError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WeightsError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self, most: u64) -> Result<String, WeightsError> {
        let length = self.u64()?;
        self.need(length)?;
        if length > most {
            return Err(self.damaged(format!("it has a name of {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        self.storage.read_at(self.at, &mut bytes)?;
        self.at += length;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }

    fn value(&mut self, depth: usize) -> Result<Value, WeightsError> {
        let kind = self.u32()?;
        self.value_of(kind, depth)
    }

    fn value_of(&mut self, kind: u32, depth: usize) -> Result<Value, WeightsError> {
        Ok(match kind {
            0 => Value::Number(u64::from(u8::from_le_bytes(self.bytes()?))),
            2 => Value::Number(u64::from(u16::from_le_bytes(self.bytes()?))),
            4 => Value::Number(u64::from(self.u32()?)),
            10 => Value::Number(self.u64()?),
            5 => u64::try_from(i32::from_le_bytes(self.bytes()?)).map_or(Value::Other, Value::Number),
            11 => u64::try_from(i64::from_le_bytes(self.bytes()?)).map_or(Value::Other, Value::Number),
            1 | 7 => self.skip(1)?,
            3 => self.skip(2)?,
            6 => self.skip(4)?,
            12 => self.skip(8)?,
            8 => Value::Text(self.text(self.storage.size())?),
            9 => self.array(depth)?,
            other => return Err(self.damaged(format!("it has a value of the unknown type {other}"))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Value, WeightsError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        self.need(count)?;
        if depth >= MOST_DEPTH {
            return Err(self.damaged("it has lists in lists in lists"));
        }
        let mut numbers = Vec::new();
        for _ in 0..count {
            match self.value_of(kind, depth + 1)? {
                Value::Number(number) if count <= KEPT_NUMBERS => numbers.push(number),
                _ => {}
            }
        }
        Ok(Value::Numbers(numbers))
    }

    fn skip(&mut self, count: u64) -> Result<Value, WeightsError> {
        self.need(count)?;
        self.at += count;
        Ok(Value::Other)
    }

    fn info(&mut self) -> Result<RawInfo, WeightsError> {
        let name = self.text(MOST_NAME)?;
        let dimensions = self.u32()?;
        if dimensions > MOST_DIMENSIONS {
            return Err(self.damaged(format!("tensor `{name}` has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            let size = usize::try_from(size).map_err(|_| self.damaged(format!("tensor `{name}` is too big")))?;
            shape.push(size);
        }
        shape.reverse();
        Ok(RawInfo {
            name,
            shape,
            kind: self.u32()?,
            offset: self.u64()?,
        })
    }
}
