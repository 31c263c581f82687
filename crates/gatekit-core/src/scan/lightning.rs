//! Lightning attention: linear attention with a constant decay per head.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{
    Decay, ScanForm, ScanOptions, ScanOutput, StepDecay, Write, linear_recurrence, linear_recurrence_step,
};
use crate::error::ConfigError;
use crate::sequence::Boundaries;

/// Steps whose scores are combined elementwise where a form of the scan needs that.
const SUB_BLOCK: usize = 16;

/// Causal linear attention in which every head forgets at a constant rate.
///
/// ```text
/// S_t = exp(-slope_h) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t
/// ```
///
/// Per head h, without a factor on the scores and without a denominator. The slopes are constants
/// and not trained. Whole sequences are computed in blocks, with powers of a decay of at most 1
/// alone, so nothing overflows however long they are; a slope of 0 never forgets. Qin et al.,
/// TransNormerLLM (arXiv 2307.14995), section 3.3; Lightning Attention-2 (arXiv 2401.04658).
#[derive(Debug, Clone, PartialEq)]
pub struct LightningAttention {
    slope_rate: Vec<f64>,
    options: ScanOptions,
}

impl LightningAttention {
    /// One slope per head, each at least 0: `exp(-slope)` of the memory survives a step.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when there is no slope, or one is negative (a memory that grows) or not finite.
    pub fn new(slope_rate: &[f64]) -> Result<Self, ConfigError> {
        if slope_rate.is_empty() {
            return Err(ConfigError::new("slope_rate", "no slope", "one for every head"));
        }
        if let Some((head, slope)) =
            slope_rate.iter().enumerate().find(|(_, slope)| !(slope.is_finite() && **slope >= 0.0))
        {
            let got = format!("{slope} for head {head}");
            return Err(ConfigError::new("slope_rate", got, "finite numbers of at least 0"));
        }
        let options = ScanOptions { scale: Some(1.0), ..ScanOptions::default() };
        Self { slope_rate: slope_rate.to_vec(), options }.with_block_size(256)
    }

    /// Steps that are computed together. Never changes the result. Default 256.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a block of 0 steps.
    pub fn with_block_size(mut self, block_size: usize) -> Result<Self, ConfigError> {
        if block_size == 0 {
            return Err(ConfigError::new("block_size", 0, "at least 1"));
        }
        self.options.sub_chunk_size = SUB_BLOCK.min(block_size);
        self.options.chunk_size = block_size - block_size % self.options.sub_chunk_size;
        Ok(self)
    }

    /// The same with another form of the scan; see [`ScanForm`].
    pub fn with_scan_form(mut self, form: ScanForm) -> Self {
        self.options.form = form;
        self
    }

    /// The slope of every head.
    pub fn slope_rate(&self) -> &[f64] {
        &self.slope_rate
    }

    /// Whole sequences, in blocks.
    ///
    /// # Shapes
    ///
    /// - `q`, `k`: `[batch, time, heads, key_dim]`; `v`: `[batch, time, heads, value_dim]`
    /// - `initial_state`: `[batch, heads, key_dim, value_dim]`; zero when absent
    /// - `boundaries`: of sequences packed in batch 1, as in [`linear_recurrence`]
    ///
    /// # Panics
    ///
    /// When the heads are not as many as the slopes, or as [`linear_recurrence`].
    pub fn forward(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        initial_state: Option<Tensor<4>>,
        boundaries: Option<&Boundaries>,
    ) -> ScanOutput {
        let [batch, time, heads, _] = q.dims();
        let decay = self.log_decay(heads, q.dtype(), &q.device());
        let decay = decay.reshape([1, 1, heads]).expand([batch, time, heads]);
        let decay = Decay::PerHead(decay);
        linear_recurrence(q, k, v, decay, Write::Additive, initial_state, boundaries, &self.options)
    }

    /// One step: returns `o_t` `[batch, heads, value_dim]` and the new state.
    ///
    /// # Shapes
    ///
    /// - `q`, `k`: `[batch, heads, key_dim]`; `v`: `[batch, heads, value_dim]`
    /// - `state`: `[batch, heads, key_dim, value_dim]`
    ///
    /// # Panics
    ///
    /// When the heads are not as many as the slopes, or as [`linear_recurrence_step`].
    pub fn step(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, state: Tensor<4>) -> (Tensor<3>, Tensor<4>) {
        let [batch, heads, _] = q.dims();
        let decay = self.log_decay(heads, q.dtype(), &q.device());
        let decay = StepDecay::PerHead(decay.reshape([1, heads]).expand([batch, heads]));
        linear_recurrence_step(q, k, v, decay, None, state, self.options.scale)
    }

    /// `-slope`, `[heads]`, in float64 or float32.
    fn log_decay(&self, heads: usize, dtype: DType, device: &Device) -> Tensor<1> {
        assert!(
            heads == self.slope_rate.len(),
            "lightning attention: `q` has {heads} heads, there are {} slopes",
            self.slope_rate.len()
        );
        let decays: Vec<f64> = self.slope_rate.iter().map(|slope| -slope).collect();
        let dtype = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        Tensor::from_data(TensorData::new(decays, [heads]), (device, dtype))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    const FORMS: [ScanForm; 3] = [ScanForm::Auto, ScanForm::Portable, ScanForm::Recurrent];

    /// `sum_{t <= s} exp(-slope (s - t)) (q_s . k_t) v_t` for one head, `[time, value_dim]`.
    fn by_hand(q: &[f64], k: &[f64], v: &[f64], slope: f64, key_dim: usize, value_dim: usize) -> Vec<f64> {
        let time = q.len() / key_dim;
        let mut o = vec![0.0; time * value_dim];
        for s in 0..time {
            for t in 0..=s {
                let score: f64 = (0..key_dim).map(|c| q[s * key_dim + c] * k[t * key_dim + c]).sum();
                let weight = score * (-slope * (s - t) as f64).exp();
                for c in 0..value_dim {
                    o[s * value_dim + c] += weight * v[t * value_dim + c];
                }
            }
        }
        o
    }

    #[test]
    fn equals_the_sum_over_all_pairs() {
        let (time, slopes) = (37, [0.0, 1e-7, 0.3, 90.0]);
        let heads = slopes.len();
        let (q, k, v) = (ramp(time * 3, 1.0), ramp(time * 3, 1.4), ramp(time * 2, 0.8));
        for device in devices() {
            // Every head has the same queries, keys and values.
            let all = |x: &[f64], dim| float32(x, [1, time, 1, dim], &device).expand([1, time, heads, dim]);
            for form in FORMS {
                for block in [1, 4, 20, 256] {
                    let attention = LightningAttention::new(&slopes).unwrap().with_scan_form(form);
                    let attention = attention.with_block_size(block).unwrap();
                    let got = attention.forward(all(&q, 3), all(&k, 3), all(&v, 2), None, None);
                    for (head, slope) in slopes.iter().enumerate() {
                        let output = values(got.output.clone().narrow(2, head, 1));
                        assert_close(&output, &by_hand(&q, &k, &v, *slope, 3, 2), 2e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn steps_equal_the_whole() {
        for device in devices() {
            let attention = LightningAttention::new(&[0.0, 0.4]).unwrap();
            let tensor = |dim, amplitude| float32(&ramp(2 * 9 * 2 * dim, amplitude), [2, 9, 2, dim], &device);
            let (q, k, v) = (tensor(4, 1.0), tensor(4, 0.7), tensor(3, 1.2));
            let whole = attention.forward(q.clone(), k.clone(), v.clone(), None, None);
            let mut state = Tensor::zeros([2, 2, 4, 3], &device);
            for t in 0..9 {
                let at = |x: &Tensor<4>| x.clone().narrow(1, t, 1).squeeze_dim::<3>(1);
                let (output, next) = attention.step(at(&q), at(&k), at(&v), state);
                assert_close(&values(output), &values(at(&whole.output)), 1e-5);
                state = next;
            }
            assert_close(&values(state), &values(whole.final_state), 1e-5);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let device = devices().remove(0);
        let attention = LightningAttention::new(&[0.0, 0.4]).unwrap().with_block_size(2).unwrap();
        let tensor = |amplitude| float64(&ramp(20, amplitude), [1, 5, 2, 2], &device);
        let state = float64(&ramp(8, 0.5), [1, 2, 2, 2], &device);
        let run = |q, k, v, state| {
            let result = attention.forward(q, k, v, Some(state), None);
            Tensor::cat(vec![result.output.flatten::<1>(0, 3), result.final_state.flatten(0, 3)], 0)
                * float64(&ramp(28, 1.0), [28], &device)
        };
        let shape = [1, 5, 2, 2];
        check_gradients(&ramp(20, 1.1), shape, &device, |q| run(q, tensor(0.6), tensor(0.9), state.clone()));
        check_gradients(&ramp(20, 1.1), shape, &device, |k| run(tensor(0.6), k, tensor(0.9), state.clone()));
        check_gradients(&ramp(20, 1.1), shape, &device, |v| run(tensor(0.6), tensor(0.9), v, state.clone()));
        check_gradients(&ramp(8, 1.1), [1, 2, 2, 2], &device, |state| {
            run(tensor(0.6), tensor(0.9), tensor(1.2), state)
        });
    }

    #[test]
    fn long_sequences_do_not_overflow() {
        for device in devices() {
            // Powers exp(slope * t) would leave float32 at t = 88.
            let attention = LightningAttention::new(&[1.0]).unwrap();
            let ones = || Tensor::<4>::ones([1, 2000, 1, 1], &device);
            let output = values(attention.forward(ones(), ones(), ones(), None, None).output);
            let limit = 1.0 / (1.0 - (-1f64).exp());
            assert!(output[100..].iter().all(|o| (o - limit).abs() < 1e-5), "{:?}", &output[1990..]);
        }
    }

    #[test]
    fn refuses_slopes_that_grow_and_empty_blocks() {
        for slopes in [&[][..], &[0.1, -0.1], &[f64::NAN], &[f64::INFINITY]] {
            assert_eq!(LightningAttention::new(slopes).unwrap_err().field, "slope_rate", "{slopes:?}");
        }
        let error = LightningAttention::new(&[0.5]).unwrap().with_block_size(0).unwrap_err();
        assert_eq!(error.field, "block_size");
    }

    #[test]
    #[should_panic(expected = "`q` has 2 heads, there are 1 slopes")]
    fn another_number_of_heads_panics() {
        let device = devices().remove(0);
        let x = || Tensor::<4>::zeros([1, 3, 2, 4], &device);
        LightningAttention::new(&[0.5]).unwrap().forward(x(), x(), x(), None, None);
    }
}
