//! Slots taken out of a routing after the router has chosen.

use burn::tensor::{Bool, Tensor, TensorData};

use super::Routing;

impl Routing {
    /// The routing without the slots that `keep` (`N K` entries, token by token) marks false.
    ///
    /// A pruned slot has weight 0 and the index E, which is no expert, in the tensors and in the
    /// [`assignment`](Self::assignment) alike; it leaves the
    /// [`DispatchPlan`](crate::dispatch::DispatchPlan), so that no row is computed for it, and the
    /// counts. All slots of a token may be pruned. The weights that stay are what they were, not
    /// divided by their new sum, and carry gradients as before; logits, scores and the smoothed
    /// [`load`](Self::load) still say what the router thought.
    ///
    /// ```
    /// # #[cfg(feature = "flex")] {
    /// use burn::tensor::{Device, Tensor};
    /// use gatekit_core::dispatch::DispatchPlan;
    /// use gatekit_core::router::{Routing, ScoringFunc};
    ///
    /// let device = Device::flex();
    /// let logits = Tensor::zeros([2, 3], &device);
    /// let indices = Tensor::from_data([[2, 0], [0, 1]], &device);
    /// let weights = Tensor::from_data([[0.7, 0.3], [0.6, 0.4]], &device);
    /// let routing = Routing::from_parts(logits, ScoringFunc::Softmax, indices, weights).unwrap();
    /// let pruned = routing.prune(&[true, false, false, false]);
    /// assert_eq!(pruned.assignment.experts(), [2, 3, 3, 3]);
    /// assert_eq!(DispatchPlan::new(&pruned.assignment).order(), [0]);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Unless `keep` has one entry a slot.
    pub fn prune(self, keep: &[bool]) -> Self {
        let [tokens, k] = self.weights.dims();
        assert!(
            keep.len() == tokens * k,
            "Routing::prune: `keep` has {} entries, the routing {tokens} tokens of {k} slots",
            keep.len()
        );
        if !keep.contains(&false) {
            return self;
        }
        let pruned: Vec<bool> = keep.iter().map(|keep| !keep).collect();
        let pruned = TensorData::new(pruned, [tokens, k]);
        let pruned = Tensor::<2, Bool>::from_data(pruned, &self.weights.device());
        let none = self.assignment.num_experts() as i64;
        Self {
            // Not a product, which would let an infinite weight through as NaN.
            weights: self.weights.mask_fill(pruned.clone(), 0.0),
            indices: self.indices.mask_fill(pruned, none),
            assignment: self.assignment.prune(keep),
            ..self
        }
    }
}
