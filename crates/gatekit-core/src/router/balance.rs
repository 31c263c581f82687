//! The selection bias that is moved outside of backpropagation.

use burn::tensor::{Tensor, TensorData};

/// Moves the selection bias against the load: `b_e + u sign(mean(c) - c_e)`.
///
/// After every training step, from the slots `c_e` that every expert got in the whole batch. Wang
/// et al., "Auxiliary-Loss-Free Load Balancing" (arXiv 2408.15664), algorithm 1; DeepSeek-V3.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BiasBalancer {
    /// Step u; 0.001 in DeepSeek-V3, 0 near the end of training.
    pub speed: f64,
}

impl BiasBalancer {
    /// With step `speed`.
    pub fn new(speed: f64) -> Self {
        Self { speed }
    }

    /// The next bias `[E]` from the present one and the slots of every expert.
    ///
    /// # Panics
    ///
    /// When there is not one count an expert.
    pub fn next_bias(&self, bias: Tensor<1>, tokens_per_expert: &[usize]) -> Tensor<1> {
        let [experts] = bias.dims();
        assert!(
            tokens_per_expert.len() == experts,
            "BiasBalancer: {} counts for a bias of {experts} experts",
            tokens_per_expert.len()
        );
        let total: usize = tokens_per_expert.iter().sum();
        // sign(mean - c) = sign(total - E c), without rounding.
        let signs = tokens_per_expert.iter().map(|count| match total.cmp(&(experts * count)) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.0,
            std::cmp::Ordering::Less => -1.0,
        });
        let steps: Vec<f64> = signs.map(|sign| sign * self.speed).collect();
        let steps = Tensor::from_data(TensorData::new(steps, [experts]), (&bias.device(), bias.dtype()));
        bias + steps
    }
}
