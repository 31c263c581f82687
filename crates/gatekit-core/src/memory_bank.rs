//! Retrieval from a trained bank of vectors.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor, activation::softmax};

use crate::common::{assert_last_axis, widen};
use crate::config::ModuleConfig;
use crate::error::ConfigError;

/// Configuration of [`MemoryBank`].
#[derive(Config, Debug)]
pub struct MemoryBankConfig {
    /// Vectors in the bank M, at least 1.
    pub slots: usize,
    /// Channels of a vector C, at least 1.
    pub dim: usize,
}

impl ModuleConfig for MemoryBankConfig {
    type Module = MemoryBank;

    fn try_init(&self, device: &Device) -> Result<MemoryBank, ConfigError> {
        for (field, size) in [("slots", self.slots), ("dim", self.dim)] {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        let xavier = Initializer::XavierUniform { gain: 1.0 };
        let shape = [self.slots, self.dim];
        Ok(MemoryBank { weight: xavier.init_with(shape, Some(self.dim), Some(self.slots), device) })
    }
}

/// `y = softmax(x B^T) B`: every input reads the rows of a bank `B`, which are keys and values alike.
///
/// The scores are not scaled. They are computed and normalised in at least float32, with the
/// largest subtracted, so that scores of any finite size are safe. The bank starts Xavier-uniform,
/// within `sqrt(6 / (M + C))`. Acharya, "Gated Associative Memory" (arXiv 2509.00605), section 3.2.
#[derive(Module, Debug)]
pub struct MemoryBank {
    /// The bank, `[M, C]`.
    pub weight: Param<Tensor<2>>,
}

impl MemoryBank {
    /// `[.., C]` to `[.., C]`: what every input reads.
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have C channels.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (dims, dtype) = (x.dims(), x.dtype());
        let bank = widen(self.weight.val());
        softmax(self.scores(x, bank.clone()), 1).matmul(bank).reshape(dims).cast(dtype)
    }

    /// The share of every slot in what an input reads: `[.., C]` to `[N, M]`, where N counts the
    /// inputs row by row. In at least float32; each row sums to 1.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn shares<const D: usize>(&self, x: Tensor<D>) -> Tensor<2> {
        softmax(self.scores(x, widen(self.weight.val())), 1)
    }

    fn scores<const D: usize>(&self, x: Tensor<D>, bank: Tensor<2>) -> Tensor<2> {
        let ([_, channels], dims) = (bank.dims(), x.dims());
        assert_last_axis("memory bank", dims, channels);
        let inputs = dims[..D - 1].iter().product();
        widen(x).reshape([inputs, channels]).matmul(bank.transpose())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};
    use burn::tensor::DType;

    fn by_hand(x: &[f64], bank: &[f64], channels: usize) -> Vec<f64> {
        let mut read = Vec::new();
        for x in x.chunks(channels) {
            let scores: Vec<f64> =
                bank.chunks(channels).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            read.extend((0..channels).map(|c| {
                weights.iter().zip(bank.chunks(channels)).map(|(w, row)| w / total * row[c]).sum::<f64>()
            }));
        }
        read
    }

    #[test]
    fn reads_what_the_equation_says() {
        let (x, bank) = (ramp(24, 2.0), ramp(15, 1.5));
        for device in devices() {
            let mut memory = MemoryBankConfig::new(5, 3).init(&device);
            memory.weight = Param::from_tensor(float32(&bank, [5, 3], &device));
            let read = memory.forward(float32(&x, [2, 4, 3], &device));
            assert_eq!(read.dims(), [2, 4, 3]);
            assert_close(&values(read), &by_hand(&x, &bank, 3), 1e-6);
            assert_close(&values(memory.forward(float32(&x, [8, 3], &device))), &by_hand(&x, &bank, 3), 1e-6);
            let shares = memory.shares(float32(&x, [2, 4, 3], &device));
            assert_eq!(shares.dims(), [8, 5]);
            assert_close(&values(shares.sum_dim(1)), &[1.0; 8], 1e-6);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for device in devices() {
            let weight = float64(&ramp(6, 1.0), [2, 3], &device);
            let bank = ramp(12, 1.0);
            let memory = |tensor| MemoryBank { weight: Param::from_tensor(tensor) };
            let fixed = memory(float64(&bank, [4, 3], &device));
            check_gradients(&ramp(6, 2.0), [2, 3], &device, |x| fixed.forward(x) * weight.clone());
            let x = float64(&ramp(6, 2.0), [2, 3], &device);
            check_gradients(&bank, [4, 3], &device, |bank| memory(bank).forward(x.clone()) * weight.clone());
        }
    }

    #[test]
    fn scores_of_any_finite_size_are_safe() {
        for device in devices() {
            let mut memory = MemoryBankConfig::new(2, 2).init(&device);
            let bank = float32(&[1e15, 0.0, 0.0, 1e15], [2, 2], &device.clone().autodiff());
            memory.weight = Param::from_tensor(bank);
            let x = float32(&[1e15, -1e15, 0.0, 0.0], [2, 2], &device.clone().autodiff()).require_grad();
            let read = memory.forward(x.clone());
            let gradients = read.clone().sum().backward();
            assert_close(&values(read), &[1e15, 0.0, 5e14, 5e14], 1e-6);
            assert!(values(x.grad(&gradients).unwrap()).iter().all(|slope| slope.is_finite()));
            if device.supports_dtype(DType::F16) {
                let memory = MemoryBank {
                    weight: Param::from_tensor(float32(&[300.0, 0.0, 0.0, 300.0], [2, 2], &device)),
                };
                let x = float32(&[300.0, -300.0], [1, 2], &device).cast(DType::F16);
                assert_close(&values(memory.forward(x)), &[300.0, 0.0], 1e-3);
            }
        }
    }

    #[test]
    fn the_bank_starts_xavier_uniform() {
        for device in devices() {
            device.seed(3);
            let bank = values(MemoryBankConfig::new(60, 40).init(&device).weight.val());
            let limit = (6.0f64 / 100.0).sqrt();
            assert!(bank.iter().all(|value| value.abs() <= limit + 1e-6));
            let variance = bank.iter().map(|value| value * value).sum::<f64>() / bank.len() as f64;
            assert!((variance.sqrt() - limit / 3f64.sqrt()).abs() < 0.02 * limit, "{variance}");
        }
    }

    #[test]
    fn refuses_empty_sizes() {
        let device = devices().remove(0);
        assert_eq!(MemoryBankConfig::new(0, 4).try_init(&device).unwrap_err().field, "slots");
        assert_eq!(MemoryBankConfig::new(4, 0).try_init(&device).unwrap_err().field, "dim");
    }

    #[test]
    #[should_panic(expected = "memory bank: `x` [2, 4] has 4 channels in its last axis, the module 3")]
    fn inputs_of_another_width_panic() {
        let device = devices().remove(0);
        MemoryBankConfig::new(5, 3).init(&device).forward(Tensor::<2>::zeros([2, 4], &device));
    }
}
