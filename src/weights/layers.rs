//! The layers of a model by name, for those who patch weights.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::WeightSlot;

/// Every `Linear` and `Conv2d` of one model (a UNet, a text encoder) under its diffusers name without `.weight`, such as
/// `mid_block.attentions.0.transformer_blocks.0.attn1.to_q`. Layers enter themselves while they load.
#[derive(Debug, Default)]
pub struct LayerTable {
    slots: RefCell<BTreeMap<String, Rc<WeightSlot>>>,
}

impl LayerTable {
    /// Enters a layer.
    pub fn insert(&self, name: String, slot: Rc<WeightSlot>) {
        self.slots.borrow_mut().insert(name, slot);
    }

    /// The slot of a layer.
    pub fn get(&self, name: &str) -> Option<Rc<WeightSlot>> {
        self.slots.borrow().get(name).cloned()
    }

    /// Every layer's name, in order.
    pub fn names(&self) -> Vec<String> {
        self.slots.borrow().keys().cloned().collect()
    }

    /// Gives every layer its original weight back.
    pub fn restore_all(&self) {
        self.slots.borrow().values().for_each(|slot| slot.restore());
    }
}
