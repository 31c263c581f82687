//! Relative positions for linear attention, with trained angles.

use std::f64::consts::TAU;

use burn::config::Config;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::common::widen;
use crate::config::ModuleConfig;
use crate::error::ConfigError;

/// Configuration of [`Lrpe`].
#[derive(Config, Debug)]
pub struct LrpeConfig {
    /// Number of heads H, at least 1.
    pub num_heads: usize,
    /// Channels of a head e, at least 1.
    pub head_dim: usize,
    /// The angles start from `base^(-2i / (H e))`, above 0. Default 10000.
    #[config(default = 10000.0)]
    pub base: f64,
}

impl ModuleConfig for LrpeConfig {
    type Module = Lrpe;

    fn try_init(&self, device: &Device) -> Result<Lrpe, ConfigError> {
        for (field, size) in [("num_heads", self.num_heads), ("head_dim", self.head_dim)] {
            if size == 0 {
                return Err(ConfigError::new(field, size, "at least 1"));
            }
        }
        if !(self.base > 0.0 && self.base.is_finite()) {
            return Err(ConfigError::new("base", self.base, "a finite number above 0"));
        }
        let (base, shape) = (self.base, [self.num_heads, 1, self.head_dim]);
        let init = move |device: &Device, require_grad: bool| {
            let width = shape[0] * shape[2];
            let angles: Vec<f64> = (0..width).map(|i| base.powf(-2.0 * i as f64 / width as f64)).collect();
            Tensor::<3>::from_data(TensorData::new(angles, shape), device).set_require_grad(require_grad)
        };
        let theta = Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into());
        Ok(Lrpe { theta })
    }
}

/// Linearised relative positional encoding: `lrpe(x)_n = [x_n cos(theta n), x_n sin(theta n)]`.
///
/// Every channel c of a head has a trained angle `theta_c`, and the width doubles. Products of a
/// query and a key then see nothing but their distance:
///
/// ```text
/// lrpe(q)_s . lrpe(k)_t = sum_c q_sc k_tc cos(theta_c (s - t))
/// ```
///
/// The angles start at `10000^(-2i / (H e))`, i counting the channels of all heads. The products
/// `theta n` are brought into one turn without rounding them first, so that far positions stay
/// exact: within 1e-6 up to 20000 and 1e-4 up to a million. Half precision is computed in float32.
/// Qin et al., LRPE (arXiv 2307.09270); TransNormerLLM (arXiv 2307.14995), eq. 3.
#[derive(Module, Debug)]
pub struct Lrpe {
    /// Angles per step, `[H, 1, e]`, in radians.
    pub theta: Param<Tensor<3>>,
}

/// Positions are taken apart into multiples of this and a rest.
const STRIDE: usize = 1024;
/// A turn is `TURN_HIGH + TURN_LOW`; the first has few enough bits for exact products.
const TURN_HIGH: f64 = 6434.0 / 1024.0;
const TURN_LOW: f64 = TAU - TURN_HIGH;

impl Lrpe {
    /// Encodes `x` `[batch, time, H, e]`, whose first step stands at position `offset`, to
    /// `[batch, time, H, 2 e]`.
    ///
    /// # Panics
    ///
    /// When the heads or channels of `x` are not those of the angles.
    pub fn forward(&self, x: Tensor<4>, offset: usize) -> Tensor<4> {
        let ([_, time, heads, channels], dtype) = (x.dims(), x.dtype());
        let [need_heads, _, need_channels] = self.theta.lazy_shape().dims();
        assert!(
            [heads, channels] == [need_heads, need_channels],
            "LRPE: `x` {:?} has [heads, channels] = [{heads}, {channels}], the angles [{need_heads}, {need_channels}]",
            x.dims()
        );
        let x = widen(x);
        let angles = self.angles(offset, time, x.dtype()).unsqueeze_dim::<4>(0);
        Tensor::cat(vec![x.clone() * angles.clone().cos(), x * angles.sin()], 3).cast(dtype)
    }

    /// `theta n` for the positions `offset .. offset + time`, up to whole turns, `[time, H, e]`.
    fn angles(&self, offset: usize, time: usize, dtype: DType) -> Tensor<3> {
        let theta = self.theta.val();
        let [heads, _, channels] = theta.dims();
        let theta = widen(theta).cast(dtype).reshape([1, heads, channels]);
        let positions = |part: &dyn Fn(usize) -> usize| {
            let values: Vec<f64> = (offset..offset + time).map(|n| part(n) as f64).collect();
            Tensor::<3>::from_data(TensorData::new(values, [time, 1, 1]), (&theta.device(), dtype))
        };
        if dtype == DType::F64 {
            return theta.clone() * positions(&|n| n);
        }
        let fixed = theta.clone().detach();
        let angle = Angle::of(fixed.clone());
        let mut turned = angle.times(positions(&|n| n % STRIDE));
        if offset + time > STRIDE {
            let coarse = angle.times(Tensor::full([1, 1, 1], STRIDE as f64, (&theta.device(), dtype)));
            turned = turned.plus(coarse.times(positions(&|n| n / STRIDE)));
        }
        let value = turned.value();
        match theta.is_tracked() {
            // Nothing is added but the derivative, n.
            true => value + (theta.clone() - fixed) * positions(&|n| n),
            false => value,
        }
    }
}

/// An angle in two parts: their sum is more exact than one number, and products of the first with
/// whole numbers below [`STRIDE`] are not rounded.
struct Angle {
    high: Tensor<3>,
    low: Tensor<3>,
}

impl Angle {
    fn of(angle: Tensor<3>) -> Self {
        let high = angle.clone().mul_scalar(4096.0).round().div_scalar(4096.0);
        Self { low: angle - high.clone(), high }
    }

    /// This angle `count` times, within one turn.
    fn times(&self, count: Tensor<3>) -> Self {
        let (high, low) = (self.high.clone() * count.clone(), self.low.clone() * count);
        Self { high, low }.within_a_turn()
    }

    fn plus(self, other: Self) -> Self {
        Self { high: self.high + other.high, low: self.low + other.low }.within_a_turn()
    }

    fn within_a_turn(self) -> Self {
        let turns = (self.high.clone() + self.low.clone()).div_scalar(TAU).round();
        Self {
            high: self.high - turns.clone().mul_scalar(TURN_HIGH),
            low: self.low - turns.mul_scalar(TURN_LOW),
        }
    }

    fn value(self) -> Tensor<3> {
        self.high + self.low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    const THETA: [f64; 6] = [1.1396814584732056, 0.8, 0.25, 0.0625, 0.01, 2.5e-5];

    fn lrpe(theta: Tensor<3>) -> Lrpe {
        Lrpe { theta: Param::from_tensor(theta) }
    }

    fn by_hand(x: &[f64], theta: &[f64], offset: usize) -> Vec<f64> {
        // [1, time, 2, 3] to [1, time, 2, 6].
        let mut encoded = Vec::new();
        for (row, x) in x.chunks(3).enumerate() {
            let (n, head) = ((offset + row / 2) as f64, row % 2);
            let angles = &theta[head * 3..][..3];
            encoded.extend(x.iter().zip(angles).map(|(x, theta)| x * (theta * n).cos()));
            encoded.extend(x.iter().zip(angles).map(|(x, theta)| x * (theta * n).sin()));
        }
        encoded
    }

    /// The angles as float32 holds them.
    fn rounded() -> Vec<f64> {
        THETA.iter().map(|theta| f64::from(*theta as f32)).collect()
    }

    #[test]
    fn far_positions_stay_exact() {
        let x = ramp(5 * 6, 1.0);
        for device in devices() {
            let encoding = lrpe(float32(&THETA, [2, 1, 3], &device));
            for (offset, tolerance) in
                [(0, 1e-6), (1000, 1e-6), (1022, 1e-6), (20_000, 2e-6), (100_000, 1e-5), (1_000_000, 1e-4)]
            {
                let encoded = encoding.forward(float32(&x, [1, 5, 2, 3], &device), offset);
                assert_eq!(encoded.dims(), [1, 5, 2, 6]);
                assert_close(&values(encoded), &by_hand(&x, &rounded(), offset), tolerance);
            }
            let exact = lrpe(float64(&THETA, [2, 1, 3], &device));
            let encoded = exact.forward(float64(&x, [1, 5, 2, 3], &device), 1000);
            assert_close(&values(encoded), &by_hand(&x, &THETA, 1000), 1e-12);
        }
    }

    #[test]
    fn products_see_the_distance_alone() {
        let (q, k) = (ramp(6, 1.0), ramp(6, 1.7));
        for device in devices() {
            let encoding = lrpe(float32(&THETA, [2, 1, 3], &device));
            let at = |x: &[f64], n| encoding.forward(float32(x, [1, 1, 2, 3], &device), n);
            let distance = 9;
            let expected: f64 =
                (0..6).map(|c| q[c] * k[c] * (rounded()[c] * f64::from(distance)).cos()).sum();
            for t in [0, 5, 1020, 70_000] {
                let product = values((at(&q, t + distance as usize) * at(&k, t)).sum());
                assert_close(&product, &[expected], 1e-5);
            }
        }
    }

    #[test]
    fn gradients_match_the_equation() {
        let (x, weight) = (ramp(4 * 6, 1.0), ramp(4 * 12, 1.3));
        for device in devices() {
            // Exact arithmetic against differences, float32 against exact arithmetic.
            let (x64, weight64) =
                (float64(&x, [1, 4, 2, 3], &device), float64(&weight, [1, 4, 2, 6], &device));
            check_gradients(&THETA, [2, 1, 3], &device, |theta| {
                lrpe(theta).forward(x64.clone(), 3) * weight64.clone()
            });
            let slopes = |offset, double: bool| {
                let autodiff = device.clone().autodiff();
                let make = if double { float64::<4> } else { float32::<4> };
                let theta = if double { float64::<3> } else { float32::<3> };
                let theta = theta(&rounded(), [2, 1, 3], &autodiff).require_grad();
                let y = lrpe(theta.clone()).forward(make(&x, [1, 4, 2, 3], &autodiff), offset);
                let gradients = (y * make(&weight, [1, 4, 2, 6], &autodiff)).sum().backward();
                values(theta.grad(&gradients).unwrap())
            };
            for offset in [0, 700, 5000] {
                let scale = (offset + 4) as f64;
                let unit = |slopes: Vec<f64>| slopes.iter().map(|slope| slope / scale).collect::<Vec<_>>();
                assert_close(&unit(slopes(offset, false)), &unit(slopes(offset, true)), 1e-5);
            }
        }
    }

    #[test]
    fn angles_start_as_published() {
        for device in devices() {
            let theta = LrpeConfig::new(2, 3).init(&device).theta.val();
            assert_eq!(theta.dims(), [2, 1, 3]);
            let expected: Vec<f64> = (0..6).map(|i| 10000f64.powf(-f64::from(i) / 3.0)).collect();
            assert_close(&values(theta), &expected, 1e-7);
            assert!(LrpeConfig::new(2, 3).init(&device.clone().autodiff()).theta.val().is_require_grad());
        }
    }

    #[test]
    fn half_precision_is_computed_in_single() {
        let x = ramp(6, 1.0);
        for device in devices().into_iter().filter(|device| device.supports_dtype(DType::F16)) {
            let encoding = lrpe(float32(&THETA, [2, 1, 3], &device));
            let half = float32(&x, [1, 1, 2, 3], &device).cast(DType::F16);
            let encoded = encoding.forward(half, 3000);
            assert_eq!(encoded.dtype(), DType::F16);
            assert_close(&values(encoded), &by_hand(&x, &rounded(), 3000), 1e-3);
        }
    }

    #[test]
    fn refuses_bad_configurations() {
        let device = devices().remove(0);
        assert_eq!(LrpeConfig::new(0, 3).try_init(&device).unwrap_err().field, "num_heads");
        assert_eq!(LrpeConfig::new(2, 0).try_init(&device).unwrap_err().field, "head_dim");
        assert_eq!(LrpeConfig::new(2, 3).with_base(0.0).try_init(&device).unwrap_err().field, "base");
    }

    #[test]
    #[should_panic(expected = "has [heads, channels] = [2, 4], the angles [2, 3]")]
    fn heads_of_another_width_panic() {
        let device = devices().remove(0);
        LrpeConfig::new(2, 3).init(&device).forward(Tensor::zeros([1, 1, 2, 4], &device), 0);
    }
}
