//! The network.

use burn::module::Module;
use burn::nn::conv::Conv1d;
use burn::nn::{Dropout, Linear};
use burn::tensor::activation::relu;
use burn::tensor::{Bool, Tensor};
use gatekit_core::cross_modal::{ModalityMask, last_valid_step, zero_masked};

use super::encoder::{CrossModalEncoder, Source};
use super::gating::{ModalityGating, SensorWeights, assert_sequences};
use super::loss::unit;
use super::positions::sinusoidal_positions;

/// Sensors weighed, encoded across and within, joined and classified.
///
/// With importance weights alpha of [`ModalityGating`] on convolved features x_m and positions p:
///
/// 1. `Z_m = alpha_m (x_m + p)`
/// 2. `Z'_m = Z_m + sum over n != m of alpha_n Encoder_mn(Z_m, Z_n)`
/// 3. `r_m` = last valid step of `Encoder_m(Z'_m)`, `z = [alpha_1 r_1; ..; alpha_M r_M]`
/// 4. `logits = W_o (z + P2 relu(P1 z))`
///
/// A sensor may be missing in any instance, as long as one is there. Linear weights start Xavier uniform, biases 0, those
/// of the convolutions uniform. TouchFormer (arXiv 2511.19509).
#[derive(Module, Debug)]
pub struct TouchFormer {
    /// Temporal convolutions, one a sensor, without bias.
    pub proj: Vec<Conv1d>,
    /// The gates; `None`: sensors that are present count alike.
    pub mag: Option<ModalityGating>,
    /// Encoders from source n to target m at `[m][n]`, none on the diagonal.
    pub trans: Vec<Vec<Option<CrossModalEncoder>>>,
    /// Encoders within a sensor.
    pub mem: Vec<CrossModalEncoder>,
    /// `P1`, `[M d, M d]`.
    pub proj1: Linear,
    /// `P2`, `[M d, M d]`.
    pub proj2: Linear,
    /// `W_o`, `[M d, classes]`.
    pub out_layer: Linear,
    /// On the gated embeddings.
    pub embed_dropout: Dropout,
    /// Behind the head's ReLU.
    pub out_dropout: Dropout,
}

/// What the network makes of a batch.
#[derive(Debug, Clone)]
pub struct TouchFormerOutput {
    /// `[B, classes]`.
    pub logits: Tensor<2>,
    /// `z / max(|z|, 1e-12)`, `[B, M d]`, at least float32; for the regularisation.
    pub embedding: Tensor<2>,
    /// How much sensors count.
    pub weights: SensorWeights,
}

impl TouchFormer {
    /// From M sequences `inputs[m]` `[B, T_m, d_m]`. What the mask hides may be anything.
    ///
    /// Without autodiff, sensors that count 0 in the whole batch are not encoded, which takes reading the weights back
    /// from the device.
    ///
    /// # Panics
    ///
    /// When there are not M inputs and masks, or shapes do not fit.
    pub fn forward(&self, inputs: &[Tensor<3>], mask: &ModalityMask) -> TouchFormerOutput {
        let x = self.convolved(inputs, mask);
        let weights = match &self.mag {
            Some(mag) => mag.weigh(&x, mask),
            None => SensorWeights::of_gates(mask.present().float().cast(x[0].dtype()), mask, 0.0),
        };
        let active = active(&weights, mask);
        let embedded: Vec<Tensor<3>> =
            x.into_iter().enumerate().map(|(m, x)| self.embedded(m, x, &weights, mask)).collect();
        let parts = (0..embedded.len()).map(|m| {
            if !active[m] {
                let [batch, _, dim] = embedded[m].dims();
                return Tensor::zeros([batch, dim], (&embedded[m].device(), embedded[m].dtype()));
            }
            let encoded = self.encoded(m, &embedded, &active, &weights, mask);
            let last = last_valid_step(encoded, mask.steps(m));
            last * weights.factor(m, &embedded[m]).squeeze_dim::<2>(2)
        });
        let z = Tensor::cat(parts.collect(), 1);
        let inner = self.out_dropout.forward(relu(self.proj1.forward(z.clone())));
        let logits = self.out_layer.forward(z.clone() + self.proj2.forward(inner));
        TouchFormerOutput { logits, embedding: unit(z), weights }
    }

    /// Features of the common width, 0 where there is no step.
    fn convolved(&self, inputs: &[Tensor<3>], mask: &ModalityMask) -> Vec<Tensor<3>> {
        assert!(
            inputs.len() == self.proj.len(),
            "TouchFormer: {} `inputs`, need {}",
            inputs.len(),
            self.proj.len()
        );
        assert_sequences("TouchFormer", inputs, mask);
        let convolved = |(m, x): (usize, &Tensor<3>)| {
            let (conv, steps) = (&self.proj[m], mask.steps(m));
            let width = conv.weight.dims()[1];
            assert!(
                x.dims()[2] == width,
                "TouchFormer: `inputs[{m}]` {:?} has {} features, need {width}",
                x.dims(),
                x.dims()[2]
            );
            let x = conv.forward(zero_masked(x.clone(), steps).swap_dims(1, 2)).swap_dims(1, 2);
            zero_masked(x, steps)
        };
        inputs.iter().enumerate().map(convolved).collect()
    }

    /// `Z_m`.
    fn embedded(&self, m: usize, x: Tensor<3>, weights: &SensorWeights, mask: &ModalityMask) -> Tensor<3> {
        let [_, steps, dim] = x.dims();
        let positions = sinusoidal_positions(steps, dim, &x.device()).cast(x.dtype());
        let factor = weights.factor(m, &x);
        self.embed_dropout.forward(zero_masked((x + positions) * factor, mask.steps(m)))
    }

    /// `Encoder_m(Z'_m)`.
    fn encoded(
        &self,
        m: usize,
        embedded: &[Tensor<3>],
        active: &[bool],
        weights: &SensorWeights,
        mask: &ModalityMask,
    ) -> Tensor<3> {
        let target = &embedded[m];
        let sources = self.trans[m].iter().enumerate().filter(|(n, _)| active[*n]);
        let read = sources.filter_map(|(n, encoder)| {
            let source = Source { features: embedded[n].clone(), mask: Some(mask.steps(n).clone()) };
            let read = encoder.as_ref()?.forward(target.clone(), Some(mask.steps(m)), Some(source));
            Some(read * weights.factor(n, target))
        });
        let sum = read.fold(target.clone(), |sum, read| sum + read);
        self.mem[m].forward(sum, Some(mask.steps(m)), None)
    }
}

/// The sensors that count in some instance. With autodiff all that are present anywhere are taken to: that is known
/// without waiting for the device.
fn active(weights: &SensorWeights, mask: &ModalityMask) -> Vec<bool> {
    let present = |m: usize| mask.lengths(m).iter().any(|length| *length > 0);
    if weights.weights.device().is_autodiff() {
        return (0..mask.num_modalities()).map(present).collect();
    }
    let kept: Tensor<2, Bool> = weights.kept.clone().any_dim(0);
    kept.into_data().iter::<bool>().collect()
}
