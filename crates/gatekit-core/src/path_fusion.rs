//! Several paths, one result: every path has a gate of its own.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::config::ModuleConfig;
use crate::error::ConfigError;
use crate::gate::{GateActivation, output_gate};

/// Configuration of [`GatedPathFusion`].
#[derive(Config, Debug)]
pub struct GatedPathFusionConfig {
    /// Channels of the input and of every path, at least 1.
    pub hidden_size: usize,
    /// Number of paths, at least 2.
    #[config(default = 2)]
    pub paths: usize,
    /// Whether the gates have biases. Default true.
    #[config(default = true)]
    pub bias: bool,
}

impl ModuleConfig for GatedPathFusionConfig {
    type Module = GatedPathFusion;

    fn try_init(&self, device: &Device) -> Result<GatedPathFusion, ConfigError> {
        if self.hidden_size == 0 {
            return Err(ConfigError::new("hidden_size", 0, "at least 1"));
        }
        if self.paths < 2 {
            return Err(ConfigError::new("paths", self.paths, "at least 2"));
        }
        let gate = LinearConfig::new(self.hidden_size, self.paths * self.hidden_size).with_bias(self.bias);
        Ok(GatedPathFusion { gate: gate.init(device) })
    }
}

/// `y = sum_i sigmoid(W_i x + b_i) * path_i`: the input decides, channel by channel, how much of
/// every path passes.
///
/// The gates are independent: all paths may pass, or none. Weights and biases start uniform within
/// `1 / sqrt(C)`. Acharya, "Gated Associative Memory" (arXiv 2509.00605), section 3.3.
#[derive(Module, Debug)]
pub struct GatedPathFusion {
    /// Projection to the logits of all gates, path after path, `[C, paths * C]`.
    pub gate: Linear,
}

impl GatedPathFusion {
    /// `x` and every path `[.., C]` to `[.., C]`.
    ///
    /// # Panics
    ///
    /// When the number of paths is not the module's, or their shapes do not fit.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, paths: Vec<Tensor<D>>) -> Tensor<D> {
        let logits = self.logits(x);
        assert!(
            logits.len() == paths.len(),
            "path fusion: {} paths, the module has gates for {}",
            paths.len(),
            logits.len()
        );
        let gated = paths.into_iter().zip(logits).map(|(path, logits)| {
            assert!(
                path.dims() == logits.dims(),
                "path fusion: a path {:?} is not of the shape of `x` {:?}",
                path.dims(),
                logits.dims()
            );
            output_gate(path, logits, GateActivation::Sigmoid)
        });
        gated.reduce(|sum, path| sum + path).expect("there are at least two paths")
    }

    /// Every path's gate for `x` `[.., C]`, each `[.., C]` in (0, 1).
    pub fn gates<const D: usize>(&self, x: Tensor<D>) -> Vec<Tensor<D>> {
        self.logits(x).into_iter().map(|logits| GateActivation::Sigmoid.apply(logits)).collect()
    }

    fn logits<const D: usize>(&self, x: Tensor<D>) -> Vec<Tensor<D>> {
        let [channels, width] = self.gate.weight.lazy_shape().dims();
        let logits = self.gate.forward(x);
        (0..width / channels).map(|path| logits.clone().narrow(D - 1, path * channels, channels)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, ramp, values};
    use burn::module::Param;

    #[test]
    fn matches_a_computation_by_hand() {
        let (x, weight, bias) = (ramp(4, 1.0), ramp(12, 1.3), ramp(6, 0.7));
        let paths = [ramp(4, 2.0), ramp(4, 3.0), ramp(4, 0.5)];
        let gate = |row: usize, i: usize| {
            let z = x[row * 2] * weight[i] + x[row * 2 + 1] * weight[6 + i] + bias[i];
            1.0 / (1.0 + (-z).exp())
        };
        let expected: Vec<f64> =
            (0..4).map(|i| (0..3).map(|path| gate(i / 2, path * 2 + i % 2) * paths[path][i]).sum()).collect();
        for device in devices() {
            let mut fusion = GatedPathFusionConfig::new(2).with_paths(3).init(&device);
            fusion.gate.weight = Param::from_tensor(float32(&weight, [2, 6], &device));
            fusion.gate.bias = Some(Param::from_tensor(float32(&bias, [6], &device)));
            let tensor = |values: &Vec<f64>| float32(values, [2, 2], &device);
            let fused = fusion.forward(tensor(&x), paths.iter().map(tensor).collect());
            assert_close(&values(fused), &expected, 1e-6);
            let gates = fusion.gates(tensor(&x));
            assert_eq!(gates.len(), 3);
            let second: Vec<f64> = (0..4).map(|i| gate(i / 2, 2 + i % 2)).collect();
            assert_close(&values(gates[1].clone()), &second, 1e-6);
        }
    }

    #[test]
    fn open_and_closed_gates_are_exact() {
        for device in devices() {
            let mut fusion = GatedPathFusionConfig::new(1).init(&device);
            fusion.gate.weight = Param::from_tensor(Tensor::zeros([1, 2], &device));
            fusion.gate.bias = Some(Param::from_tensor(float32(&[1e4, -1e4], [2], &device)));
            let tensor = |value| float32(&[value], [1, 1], &device);
            assert_eq!(values(fusion.forward(tensor(3.0), vec![tensor(0.75), tensor(9.0)])), [0.75]);
        }
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        assert_eq!(GatedPathFusionConfig::new(0).try_init(&device).unwrap_err().field, "hidden_size");
        assert_eq!(GatedPathFusionConfig::new(2).with_paths(1).try_init(&device).unwrap_err().field, "paths");
    }

    #[test]
    #[should_panic(expected = "1 paths, the module has gates for 2")]
    fn another_number_of_paths_panics() {
        let device = devices().remove(0);
        let x = Tensor::<2>::zeros([2, 3], &device);
        GatedPathFusionConfig::new(3).init(&device).forward(x.clone(), vec![x]);
    }
}
