//! The mixture that is trained by gradients alone.

use burn::tensor::Tensor;

use super::solver::VectorField;

/// `dy/dt = sum_i p_i f_i(y, c_i)`: every expert on every environment, weighted by the gate's probabilities.
#[derive(Debug, Clone)]
pub struct SoftField<F> {
    /// Of `E M` environments, expert by expert.
    field: F,
    /// `[M, E]`.
    probabilities: Tensor<2>,
}

impl<F: VectorField> SoftField<F> {
    pub(super) fn new(field: F, probabilities: Tensor<2>) -> Self {
        Self { field, probabilities }
    }

    /// The gate's probabilities, `[M, E]`.
    pub fn probabilities(&self) -> &Tensor<2> {
        &self.probabilities
    }
}

impl<F: VectorField> VectorField for SoftField<F> {
    fn velocity(&self, y: Tensor<3>) -> Tensor<3> {
        let ([environments, batch, size], [_, experts]) = (y.dims(), self.probabilities.dims());
        let velocities = self.field.velocity(y.repeat_dim(0, experts));
        let weights = self.probabilities.clone().transpose().reshape([experts, environments, 1]);
        let velocities = velocities.reshape([experts, environments, batch * size]);
        (velocities * weights).sum_dim(0).reshape([environments, batch, size])
    }
}
