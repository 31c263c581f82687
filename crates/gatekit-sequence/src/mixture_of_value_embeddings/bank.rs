//! The table of value embeddings.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::module::embedding;
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use super::init;

/// Configuration of [`ValueEmbeddingBank`].
#[derive(Config, Debug)]
pub struct ValueEmbeddingBankConfig {
    /// Ids that have values: the vocabulary, and what else is looked up.
    pub rows: usize,
    /// Slots M of an id.
    pub move_slots: usize,
    /// Value heads G.
    pub n_kv_head: usize,
    /// Channels e of a value head.
    pub head_dim: usize,
    /// Width of the model, of which the start values' range follows.
    pub n_embd: usize,
}

impl ModuleConfig for ValueEmbeddingBankConfig {
    type Module = ValueEmbeddingBank;

    fn try_init(&self, device: &Device) -> Result<ValueEmbeddingBank, ConfigError> {
        for (field, size) in [
            ("rows", self.rows),
            ("move_slots", self.move_slots),
            ("n_kv_head", self.n_kv_head),
            ("head_dim", self.head_dim),
            ("n_embd", self.n_embd),
        ] {
            init::check_size(field, size)?;
        }
        let columns = self
            .n_kv_head
            .checked_mul(self.head_dim)
            .and_then(|values| values.checked_mul(self.move_slots))
            .filter(|columns| columns.checked_mul(self.rows).is_some())
            .ok_or_else(|| {
                ConfigError::new("move_slots", self.move_slots, "a table that can be addressed")
            })?;
        Ok(ValueEmbeddingBank {
            weight: init::values(self.rows, columns, self.n_embd, device),
            n_kv_head: self.n_kv_head,
            head_dim: self.head_dim,
        })
    }
}

/// M value embeddings for every id: `m_{t,i} = E[id_t, i]`, each `[G, e]`.
///
/// A layer does not own a bank: the model does, looks the values of its ids up once, and hands the
/// result to the layers. So the bank is one parameter, and its gradient is made in one pass from the
/// sum over the layers. Starts uniform in `+-sqrt(3 / n_embd)`, like the value projection.
#[derive(Module, Debug)]
pub struct ValueEmbeddingBank {
    /// The table, `[rows, M G e]`: slots, in each the heads, in each the channels.
    pub weight: Param<Tensor<2>>,
    n_kv_head: usize,
    head_dim: usize,
}

impl ValueEmbeddingBank {
    /// Number of ids.
    pub fn rows(&self) -> usize {
        self.weight.lazy_shape()[0]
    }

    /// Slots M of an id.
    pub fn slots(&self) -> usize {
        self.weight.lazy_shape()[1] / (self.n_kv_head * self.head_dim)
    }

    /// The values of `ids` `[batch, time]`: `[batch, time, M, G, e]`.
    ///
    /// # Panics
    ///
    /// When there is no id, and in debug builds for an id outside the bank
    /// ([`try_look_up`](Self::try_look_up) is for ids that come from outside).
    pub fn look_up(&self, ids: Tensor<2, Int>) -> Tensor<5> {
        let [batch, time] = ids.dims();
        assert!(batch * time > 0, "look_up: `ids` {:?} holds no id", ids.dims());
        if cfg!(debug_assertions) {
            self.check_ids(&ids).unwrap_or_else(|error| panic!("look_up: {error}"));
        }
        let slots = self.slots();
        embedding(self.weight.val(), ids).reshape([batch, time, slots, self.n_kv_head, self.head_dim])
    }

    /// As [`look_up`](Self::look_up), for ids that come from outside; reads them back to the host.
    ///
    /// # Errors
    ///
    /// [`InputError`] as [`check_ids`](Self::check_ids).
    pub fn try_look_up(&self, ids: Tensor<2, Int>) -> Result<Tensor<5>, InputError> {
        self.check_ids(&ids)?;
        Ok(self.look_up(ids))
    }

    /// Checks ids; reads them back to the host.
    ///
    /// # Errors
    ///
    /// [`InputError`] when there is none, or names the first outside `0 .. rows` and its place.
    pub fn check_ids(&self, ids: &Tensor<2, Int>) -> Result<(), InputError> {
        check_range("ids", ids, self.rows())
    }
}

/// Refuses an empty tensor and names the first entry outside `0 .. bound`.
pub(super) fn check_range(field: &str, ids: &Tensor<2, Int>, bound: usize) -> Result<(), InputError> {
    let [batch, time] = ids.dims();
    if batch * time == 0 {
        return Err(InputError::new(field, format!("shape [{batch}, {time}]"), "at least one id"));
    }
    let outside = |id: i64| usize::try_from(id).map_or(true, |id| id >= bound);
    match ids.to_data().iter::<i64>().enumerate().find(|(_, id)| outside(*id)) {
        None => Ok(()),
        Some((place, id)) => Err(InputError::new(
            field,
            format!("{id} at [{}, {}]", place / time, place % time),
            format!("0 .. {bound}"),
        )),
    }
}
