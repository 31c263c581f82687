//! The order in which tokens go to their experts.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use gatekit_kernels::grouped::SortedSlots;
use gatekit_kernels::rows::{RowMap, combine_rows};

use crate::common::widen;
use crate::router::Assignment;

/// Kept slots sorted by expert, and by slot within an expert.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use gatekit_core::dispatch::DispatchPlan;
/// use gatekit_core::router::Assignment;
///
/// // Three tokens, two experts each.
/// let assignment = Assignment::new(vec![2, 0, 0, 1, 2, 1], 2, 3).unwrap();
/// let plan = DispatchPlan::new(&assignment);
/// assert_eq!(plan.order(), [1, 2, 3, 5, 0, 4]);
/// assert_eq!(plan.offsets(), [0, 2, 4, 6]);
/// let x = Tensor::<2>::from_data([[1.0], [2.0], [3.0]], &Device::flex());
/// let sorted = plan.gather(x); // 1, 2 for expert 0, then 2, 3, then 1, 3
/// # let _ = sorted;
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatchPlan {
    slots: Arc<SortedSlots>,
}

impl DispatchPlan {
    /// Sorts the kept slots of an assignment.
    pub fn new(assignment: &Assignment) -> Self {
        // A counting sort, which is stable.
        let mut offsets = vec![0; assignment.num_experts() + 1];
        let kept = || {
            let slots = assignment.experts().iter().zip(assignment.kept()).enumerate();
            slots.filter(|(_, (_, kept))| **kept).map(|(slot, (expert, _))| (slot, *expert))
        };
        kept().for_each(|(_, expert)| offsets[expert + 1] += 1);
        for expert in 0..assignment.num_experts() {
            offsets[expert + 1] += offsets[expert];
        }
        let mut next = offsets.clone();
        let mut order = vec![0; offsets[assignment.num_experts()]];
        for (slot, expert) in kept() {
            order[next[expert]] = slot;
            next[expert] += 1;
        }
        let rows = order.iter().map(|slot| slot / assignment.per_token()).collect();
        Self::from_parts(assignment.tokens(), assignment.experts().len(), rows, order, offsets)
    }

    /// From sorted rows of `tokens` tokens and the positions of their weights, of which there are `weights`.
    pub(crate) fn from_parts(
        tokens: usize,
        weights: usize,
        rows: Vec<usize>,
        order: Vec<usize>,
        offsets: Vec<usize>,
    ) -> Self {
        Self { slots: Arc::new(SortedSlots::new(tokens, weights, rows, order, offsets)) }
    }

    /// What [`gated_experts`](super::gated_experts) takes.
    pub fn slots(&self) -> &Arc<SortedSlots> {
        &self.slots
    }

    /// The kept slots in their sorted order, M entries: positions in the flattened weights.
    pub fn order(&self) -> &[usize] {
        self.slots.order()
    }

    /// Number of tokens N.
    pub fn tokens(&self) -> usize {
        self.slots.tokens()
    }

    /// The token of every sorted slot, M entries.
    pub fn rows(&self) -> &[usize] {
        self.slots.rows()
    }

    /// Where every expert's rows begin, and M: E + 1 entries.
    pub fn offsets(&self) -> &[usize] {
        self.slots.offsets()
    }

    /// Kept slots of every expert.
    pub fn tokens_per_expert(&self) -> Vec<usize> {
        self.offsets().windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// The tokens `x` `[N, D]` sorted by expert, `[M, D]`. Neither it nor its gradient scatters rows.
    ///
    /// # Panics
    ///
    /// When `x` does not have N rows.
    pub fn gather(&self, x: Tensor<2>) -> Tensor<2> {
        let (tokens, slots) = (x.dims()[0], &self.slots);
        assert!(
            tokens == slots.tokens(),
            "DispatchPlan: `x` has {tokens} tokens, the plan {}",
            slots.tokens()
        );
        combine_rows(x, &Arc::new(RowMap::picking(tokens, slots.rows().to_vec())))
    }

    /// `y_n = sum over the slots of token n of weight * output`: `[M, D]` and weights (`[N, K]`, or
    /// `[E, C]` where experts chose) to `[N, D]`, added in at least float32 in the order of the slots. Neither it nor
    /// its gradients scatter rows.
    ///
    /// # Panics
    ///
    /// When `outputs` does not have M rows, or there are other weights than the plan has places.
    pub fn scatter_combine(&self, outputs: Tensor<2>, weights: Tensor<2>) -> Tensor<2> {
        let (rows, dtype, slots) = (outputs.dims()[0], outputs.dtype(), &self.slots);
        assert!(
            rows == slots.order().len(),
            "DispatchPlan: `outputs` has {rows} rows, the plan {}",
            slots.order().len()
        );
        let wide = match dtype {
            DType::F16 | DType::BF16 => DType::F32,
            dtype => dtype,
        };
        let to_tokens = RowMap::adding(slots.rows(), slots.tokens());
        if rows == 0 {
            return combine_rows(outputs, &Arc::new(to_tokens));
        }
        let places = RowMap::picking(slots.weights(), slots.order().to_vec());
        let weights = combine_rows(weights.reshape([slots.weights(), 1]), &Arc::new(places));
        let weighted = widen(outputs) * weights.cast(wide);
        combine_rows(weighted, &Arc::new(to_tokens)).cast(dtype)
    }
}
