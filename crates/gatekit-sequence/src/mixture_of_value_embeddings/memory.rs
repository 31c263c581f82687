//! Which value memory a model has, and the values that its layers are handed.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use super::bank::{ValueEmbeddingBank, ValueEmbeddingBankConfig};

/// The parametric value memory of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueMemory {
    /// None: a standard model, the first baseline.
    None,
    /// LaVE, the second baseline: tables of one slot in the layers with
    /// `(layers - 1 - i) % every == 0`, so always in the last.
    LayerWise {
        /// 1 is a table in every layer (x2 in the paper), 2 in every other one (x1).
        every: usize,
    },
    /// MoVE: one bank for all layers.
    Global {
        /// Slots of a token.
        slots: usize,
    },
}

impl ValueMemory {
    /// Reads the fields `value_memory`, `move_slots` and `lave_every` of a configuration of `layers`
    /// layers. Without a number of slots it is half that of the layers, rounded up: as many values
    /// as `LayerWise { every: 2 }` has (x1 in the paper).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an unknown kind, 0 slots or an `every` of 0.
    pub fn parse(kind: &str, slots: Option<usize>, every: usize, layers: usize) -> Result<Self, ConfigError> {
        match kind {
            "none" => Ok(Self::None),
            "lave" if every == 0 => Err(ConfigError::new("lave_every", 0, "at least 1")),
            "lave" => Ok(Self::LayerWise { every }),
            "move" => match slots.unwrap_or(layers.div_ceil(2)) {
                0 => Err(ConfigError::new("move_slots", 0, "at least 1 with value_memory \"move\"")),
                slots => Ok(Self::Global { slots }),
            },
            other => Err(ConfigError::new(
                "value_memory",
                format!("\"{other}\""),
                "\"none\", \"lave\" or \"move\"",
            )),
        }
    }

    /// The name that [`parse`](Self::parse) reads.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LayerWise { .. } => "lave",
            Self::Global { .. } => "move",
        }
    }

    /// Slots that layer `layer` of `layers` mixes into its values; `None` where it has no memory.
    pub fn slots(&self, layer: usize, layers: usize) -> Option<usize> {
        match self {
            Self::None => None,
            Self::LayerWise { every } => (layers - 1 - layer).is_multiple_of(*every).then_some(1),
            Self::Global { slots } => Some(*slots),
        }
    }

    /// Whether the ordinary value is gated too where nothing else is said: in MoVE, not in LaVE.
    pub fn gates_standard(&self) -> bool {
        matches!(self, Self::Global { .. })
    }
}

/// The tables of a model: one bank that its layers share, or tables of their own.
#[derive(Module, Debug)]
pub enum ValueEmbeddings {
    /// One bank, owned by the model and counted once; its layers are handed what it looks up.
    Shared(ValueEmbeddingBank),
    /// The table of each layer that has one.
    LayerWise(Vec<Option<ValueEmbeddingBank>>),
}

impl ValueEmbeddings {
    /// The tables of `memory` for `layers` layers: `rows` ids, `heads` value heads of `head_dim`
    /// channels, in a model of `width` channels.
    pub(super) fn try_new(
        memory: &ValueMemory,
        layers: usize,
        [rows, heads, head_dim]: [usize; 3],
        width: usize,
        device: &Device,
    ) -> Result<Option<Self>, ConfigError> {
        let bank =
            |slots| ValueEmbeddingBankConfig::new(rows, slots, heads, head_dim, width).try_init(device);
        Ok(match memory {
            ValueMemory::None => None,
            ValueMemory::Global { slots } => Some(Self::Shared(bank(*slots)?)),
            ValueMemory::LayerWise { .. } => {
                let table = |layer| memory.slots(layer, layers).map(bank).transpose();
                Some(Self::LayerWise((0..layers).map(table).collect::<Result<_, _>>()?))
            }
        })
    }

    /// Fetches the values of `ids` `[batch, time]` once, for every layer: `[batch, time, slots, heads,
    /// head_dim]`, `None` for a layer without a memory. Layers that share a bank share its tensor.
    pub(super) fn look_up(
        tables: &Option<Self>,
        ids: &Tensor<2, Int>,
        layers: usize,
    ) -> Vec<Option<Tensor<5>>> {
        match tables {
            None => vec![None; layers],
            Some(Self::Shared(bank)) => vec![Some(bank.look_up(ids.clone())); layers],
            Some(Self::LayerWise(tables)) => {
                tables.iter().map(|table| table.as_ref().map(|table| table.look_up(ids.clone()))).collect()
            }
        }
    }

    /// The tables, first to last.
    pub fn banks(&self) -> Vec<&ValueEmbeddingBank> {
        match self {
            Self::Shared(bank) => vec![bank],
            Self::LayerWise(tables) => tables.iter().flatten().collect(),
        }
    }

    /// Checks ids against the tables.
    ///
    /// # Errors
    ///
    /// As [`ValueEmbeddingBank::check_ids`].
    pub fn check_ids(&self, ids: &Tensor<2, Int>) -> Result<(), InputError> {
        self.banks().first().map_or(Ok(()), |bank| bank.check_ids(ids))
    }
}
