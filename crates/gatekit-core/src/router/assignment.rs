//! Which experts the tokens go to, on the host.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::error::InputError;

/// The chosen experts of N tokens, K each, and which of these slots are kept.
///
/// Slot `s = n K + k` is the k-th choice of token n.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    num_experts: usize,
    per_token: usize,
    experts: Vec<usize>,
    kept: Vec<bool>,
}

impl Assignment {
    /// All slots kept; `experts` has `per_token` entries a token.
    ///
    /// # Errors
    ///
    /// [`InputError`] for an expert of `num_experts` or above, and when the entries do not divide
    /// among tokens.
    pub fn new(experts: Vec<usize>, per_token: usize, num_experts: usize) -> Result<Self, InputError> {
        if per_token == 0 || !experts.len().is_multiple_of(per_token) {
            let got = format!("{} entries, {per_token} a token", experts.len());
            return Err(InputError::new("indices", got, "a whole number of tokens"));
        }
        if let Some(slot) = experts.iter().position(|expert| *expert >= num_experts) {
            let got = format!("expert {} at [{}, {}]", experts[slot], slot / per_token, slot % per_token);
            return Err(InputError::new("indices", got, format!("0 .. {num_experts}")));
        }
        let kept = vec![true; experts.len()];
        Ok(Self { num_experts, per_token, experts, kept })
    }

    /// Reads indices `[N, K]` back from their device.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and for a negative index.
    pub fn from_tensor(indices: &Tensor<2, Int>, num_experts: usize) -> Result<Self, InputError> {
        let [_, per_token] = indices.dims();
        let data = indices.to_data();
        let experts = data.iter::<i64>().map(|expert| {
            usize::try_from(expert)
                .map_err(|_| InputError::new("indices", expert, format!("0 .. {num_experts}")))
        });
        Self::new(experts.collect::<Result<_, _>>()?, per_token, num_experts)
    }

    /// Number of experts E.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Choices a token K.
    pub fn per_token(&self) -> usize {
        self.per_token
    }

    /// Number of tokens N.
    pub fn tokens(&self) -> usize {
        self.experts.len() / self.per_token
    }

    /// The expert of every slot, `N K` entries; E for a slot that was [pruned](super::Routing::prune).
    pub fn experts(&self) -> &[usize] {
        &self.experts
    }

    /// Whether a slot is kept, `N K` entries.
    pub fn kept(&self) -> &[bool] {
        &self.kept
    }

    /// The share of slots that are not kept; 0 without slots.
    pub fn dropped_share(&self) -> f64 {
        let dropped = self.kept.iter().filter(|kept| !**kept).count();
        dropped as f64 / self.kept.len().max(1) as f64
    }

    /// Slots that chose each expert, kept or not, among the tokens that `real` lets count. Pruned
    /// slots chose none.
    pub(super) fn counts(&self, real: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut counts = vec![0; self.num_experts];
        for (slot, &expert) in self.experts.iter().enumerate() {
            if expert < self.num_experts && real(slot / self.per_token) {
                counts[expert] += 1;
            }
        }
        counts
    }

    /// Slots that chose each expert, kept or not, but not pruned: one count an expert.
    pub fn tokens_per_expert(&self) -> Vec<usize> {
        self.counts(|_| true)
    }

    /// The slots that `keep` lets pass as well, told by slot and expert.
    pub(crate) fn retain(mut self, mut keep: impl FnMut(usize) -> bool) -> Self {
        for (slot, kept) in self.kept.iter_mut().enumerate() {
            *kept = *kept && keep(slot);
        }
        self
    }

    /// Slots that `keep` does not let pass go to no expert: their index becomes E.
    pub(super) fn prune(mut self, keep: &[bool]) -> Self {
        for ((expert, kept), keep) in self.experts.iter_mut().zip(&mut self.kept).zip(keep) {
            if !keep {
                (*expert, *kept) = (self.num_experts, false);
            }
        }
        self
    }

    /// The indices `[N, K]` on a device.
    pub fn indices(&self, device: &Device) -> Tensor<2, Int> {
        let experts: Vec<i64> = self.experts.iter().map(|expert| *expert as i64).collect();
        Tensor::from_data(TensorData::new(experts, [self.tokens(), self.per_token]), device)
    }

    /// Which slots are kept, `[N, K]`, on a device.
    pub fn kept_mask(&self, device: &Device) -> Tensor<2, Bool> {
        Tensor::from_data(TensorData::new(self.kept.clone(), [self.tokens(), self.per_token]), device)
    }

    /// 1 for kept slots and 0 for others, `[N, K]`; `None` when all are kept.
    pub(crate) fn kept_factor(&self, device: &Device) -> Option<Tensor<2>> {
        let factors = || self.kept.iter().map(|kept| f32::from(*kept)).collect::<Vec<f32>>();
        let shape = [self.tokens(), self.per_token];
        self.kept.contains(&false).then(|| Tensor::from_data(TensorData::new(factors(), shape), device))
    }
}
