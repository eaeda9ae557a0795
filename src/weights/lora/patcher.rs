//! Applies LoRAs to a loaded model and takes them off again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::SystemTime;

use candle_core::{DType, Device, Tensor};

use super::delta::Change;
use super::file::LoraFile;
use super::lengths::column_squares;
use super::targets::{Layers, Slot, Target, Targets};
use super::{LoraDir, LoraError};
use crate::domain::model::LoraInfo;
use crate::domain::request::LoraRef;
use crate::weights::{Factors, WeightSlot};

/// What applying LoRAs came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Layers that were changed.
    pub layers: usize,
    /// Whether a text encoder was changed, so that remembered prompts no longer hold.
    pub touches_text: bool,
    /// Whether the model's weights are now others than before the call.
    pub changed: bool,
    /// What the caller should know: layers of a file that match nothing in this model.
    pub warnings: Vec<String>,
}

/// The LoRAs of one loaded model.
#[derive(Debug, Default)]
pub struct Loras {
    dir: Option<LoraDir>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    wanted: Vec<Wanted>,
    layers: Layers,
    applied: Applied,
}

/// A LoRA to apply: the file, as it was when it was read, and how strong.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    name: String,
    path: PathBuf,
    modified: Option<SystemTime>,
    strength: f32,
}

/// Strengths beyond this turn any picture into noise.
const STRONGEST: f32 = 10.0;
/// Models with more numbers than this are not copied to be patched: the change is computed beside their weights.
const MERGE_UP_TO: usize = 4_000_000_000;
const NAMED: usize = 5;

impl Loras {
    /// LoRAs of a folder; `None` if there is none.
    #[must_use]
    pub fn new(dir: Option<LoraDir>) -> Self {
        Self { dir, current: None }
    }

    /// Every LoRA that a request may name.
    #[must_use]
    pub fn list(&self) -> Vec<LoraInfo> {
        self.dir.as_ref().map(LoraDir::list).unwrap_or_default()
    }

    /// Makes the model's weights those of `wanted` and nothing else. Costs nothing if they are that already.
    ///
    /// # Errors
    /// A LoRA is not there, is damaged, or does not fit; then the model has its original weights.
    pub fn apply(&mut self, wanted: &[LoraRef], layers: &Layers) -> Result<Applied, LoraError> {
        let wanted = self.resolve(wanted)?;
        if let Some(current) = &self.current
            && current.layers.same(layers)
            && current.wanted == wanted
        {
            return Ok(Applied {
                changed: false,
                ..current.applied.clone()
            });
        }
        let before = self.take_off(layers);
        if wanted.is_empty() {
            return Ok(Applied {
                changed: before.is_some(),
                touches_text: before.unwrap_or(false),
                ..Applied::default()
            });
        }
        match put_on(&wanted, layers) {
            Ok(applied) => {
                let touches_text = applied.touches_text || before == Some(true);
                self.current = Some(Current {
                    wanted,
                    layers: layers.clone(),
                    applied: applied.clone(),
                });
                Ok(Applied {
                    touches_text,
                    changed: true,
                    ..applied
                })
            }
            Err(error) => {
                layers.restore();
                Err(error)
            }
        }
    }

    /// Gives the original weights back; whether there were others, and whether a text encoder's were among them.
    fn take_off(&mut self, layers: &Layers) -> Option<bool> {
        let current = self.current.take();
        layers.restore();
        if let Some(current) = &current {
            current.layers.restore();
        }
        current.map(|current| current.applied.touches_text)
    }

    fn resolve(&self, wanted: &[LoraRef]) -> Result<Vec<Wanted>, LoraError> {
        let find = |LoraRef { name, strength }: &LoraRef| {
            if !strength.is_finite() || strength.abs() > STRONGEST {
                return Err(LoraError::Strength {
                    name: name.clone(),
                    strength: *strength,
                });
            }
            let dir = self
                .dir
                .as_ref()
                .ok_or_else(|| LoraError::NoFolder { name: name.clone() })?;
            let path = dir.find(name)?;
            let modified = path.metadata().and_then(|meta| meta.modified()).ok();
            Ok(Wanted {
                name: name.clone(),
                path,
                modified,
                strength: *strength,
            })
        };
        wanted.iter().map(find).collect()
    }
}

/// One layer of one file, to be added to one slot.
struct Share {
    file: usize,
    layer: String,
    target: Target,
    /// Which of the target's slots.
    index: usize,
}

/// What is to be added to each slot, by its name.
type Shares = BTreeMap<String, (Rc<WeightSlot>, Vec<Share>)>;

fn put_on(wanted: &[Wanted], layers: &Layers) -> Result<Applied, LoraError> {
    let targets = Targets::new(layers);
    let mut applied = Applied::default();
    let mut shares = Shares::new();
    let mut files = Vec::new();
    for (index, want) in wanted.iter().enumerate() {
        let file = LoraFile::open(&want.path).map_err(|source| LoraError::File {
            name: want.name.clone(),
            source,
        })?;
        enter(&file, (index, want), &targets, &mut shares, &mut applied)?;
        files.push(file);
    }
    applied.layers = shares.len();
    let numbers: usize = layers
        .denoiser
        .names()
        .iter()
        .filter_map(|name| layers.denoiser.get(name))
        .map(|slot| count_of(&slot))
        .sum();
    for (slot, shares) in shares.values() {
        patch(slot, shares, wanted, &files, numbers > MERGE_UP_TO)?;
    }
    Ok(applied)
}

/// Enters what a file, given with its place among the wanted, adds to each slot; what it adds twice, under names of two kinds,
/// once.
fn enter(
    file: &LoraFile,
    (index, want): (usize, &Wanted),
    targets: &Targets,
    shares: &mut Shares,
    applied: &mut Applied,
) -> Result<(), LoraError> {
    let mut unmatched: Vec<String> = file.other().to_vec();
    let mut doubles = Vec::new();
    let (mut count, mut matched) = (0, 0);
    for layer in file.layers() {
        count += 1;
        let Some(target) = targets.find(layer) else {
            unmatched.push(layer.to_owned());
            continue;
        };
        matched += 1;
        let taken = |slot: &Slot| {
            let others = shares.get(&slot.name).map(|(_, shares)| shares);
            others.is_some_and(|shares| shares.iter().any(|share| share.file == index))
        };
        if target.slots.iter().any(taken) {
            doubles.push(layer.to_owned());
            continue;
        }
        applied.touches_text |= target.is_text && want.strength != 0.0;
        for (at, Slot { name, weight }) in target.slots.iter().enumerate() {
            let (_, held) = shares
                .entry(name.clone())
                .or_insert_with(|| (Rc::clone(weight), Vec::new()));
            held.push(Share {
                file: index,
                layer: layer.to_owned(),
                target: target.clone(),
                index: at,
            });
        }
    }
    if matched == 0 {
        let example = unmatched.first().cloned().unwrap_or_else(|| "(none)".to_owned());
        return Err(LoraError::NothingMatches {
            name: want.name.clone(),
            count: count.max(unmatched.len()),
            example,
        });
    }
    let keys = count + file.other().len();
    let told = [
        (unmatched, "match nothing in this model"),
        (doubles, "change what others of the file change, and were left out"),
    ];
    let warnings = told
        .iter()
        .filter_map(|(layers, what)| warning(&want.name, layers, keys, what));
    applied.warnings.extend(warnings);
    Ok(())
}

fn count_of(slot: &Rc<WeightSlot>) -> usize {
    slot.shape().iter().product()
}

fn warning(name: &str, layers: &[String], count: usize, what: &str) -> Option<String> {
    if layers.is_empty() {
        return None;
    }
    let some = layers
        .iter()
        .take(NAMED)
        .map(|layer| format!("`{layer}`"))
        .collect::<Vec<_>>()
        .join(", ");
    let more = if layers.len() > NAMED { ", ..." } else { "" };
    Some(format!(
        "lora `{name}`: {} of {count} keys {what}: {some}{more}",
        layers.len()
    ))
}

/// Adds every share to one slot, in one step. Beside quantised weights where the changes are made of small factors; else a
/// dense copy of this layer in the compute type holds the sum until the LoRA is removed.
fn patch(
    slot: &WeightSlot,
    shares: &[Share],
    wanted: &[Wanted],
    files: &[LoraFile],
    too_big: bool,
) -> Result<(), LoraError> {
    let mut changes = Vec::with_capacity(shares.len());
    for share in shares {
        let (Some(want), Some(file)) = (wanted.get(share.file), files.get(share.file)) else {
            continue;
        };
        let mut change = file.change(&share.layer).map_err(|source| LoraError::File {
            name: want.name.clone(),
            source,
        })?;
        if share.target.is_entrance() && change.columns_set().is_none() {
            // As diffusers does for LoRAs of the plain model on an inpainting one.
            change = change.widened(slot.shape().iter().skip(1).product())?;
        }
        check_size(share, &change, &want.name)?;
        changes.push((f64::from(want.strength), part_of(&change, share, slot.device())?));
    }
    let linear = slot.shape().len() == 2;
    let beside = linear && (slot.quantisation().is_some() || too_big);
    if beside {
        let factors: Option<Vec<Factors>> = changes
            .iter()
            .map(|(_, change)| change.factors())
            .collect::<Result<_, _>>()?;
        if let Some(factors) = factors {
            for ((strength, change), factors) in changes.iter().zip(&factors) {
                slot.add_side(factors, change.scale() * strength)?;
            }
            return Ok(());
        }
    }
    let original = slot.original_f32()?;
    let flat = original.flatten_from(1)?;
    let mut sum = flat.clone();
    for (strength, change) in &changes {
        sum = (sum + (change.delta(&flat)? * *strength)?)?;
    }
    slot.replace(&sum.reshape(slot.shape())?)?;
    Ok(())
}

/// Refuses a change of another size than its target has.
fn check_size(share: &Share, change: &Change, name: &str) -> Result<(), LoraError> {
    let slots = &share.target.slots;
    let numbers = slots.iter().map(|slot| count_of(&slot.weight)).sum();
    if change.rows() == share.target.rows(0).total && change.count() == numbers {
        return Ok(());
    }
    Err(LoraError::OtherModel {
        name: name.to_owned(),
        layer: share.layer.clone(),
        found: change.count(),
        expected: numbers,
    })
}

/// The part of a change that belongs to the share's slot. The columns of a fused layer run through all of its slots, so that all
/// are looked at where lengths of columns are set.
fn part_of(change: &Change, share: &Share, device: &Device) -> candle_core::Result<Change> {
    let target = &share.target;
    let rows = target.rows(share.index);
    let mut part = change.part(&rows)?;
    let Some(columns) = change.columns_set().filter(|_| !rows.is_all()) else {
        return Ok(part);
    };
    let mut whole = Tensor::zeros(columns, DType::F32, device)?;
    for (index, slot) in target.slots.iter().enumerate() {
        let weight = slot.weight.original_f32()?.flatten_from(1)?;
        let changed = change.part(&target.rows(index))?.before_lengths(&weight)?;
        whole = (whole + column_squares(&changed, columns)?)?;
    }
    part.note_squares(whole);
    Ok(part)
}
