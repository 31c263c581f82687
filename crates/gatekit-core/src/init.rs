//! How parameters start: the initialisations that the published sequence models share.

use burn::module::{Initializer, Param, ParamId};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor, TensorData};

/// Standard deviation of freshly initialised projections and embeddings.
pub const STANDARD_DEVIATION: f64 = 0.02;

/// A projection `y = x W + b` with `W ~ normal(0, 0.02)` and, with `bias`, `b = 0`.
///
/// The weight is stored `[d_in, d_out]`, as in Burn; the published files hold its transpose.
pub fn linear(d_in: usize, d_out: usize, bias: bool, device: &Device) -> Linear {
    let normal = Initializer::Normal { mean: 0.0, std: STANDARD_DEVIATION };
    Linear {
        bias: bias.then(|| Initializer::Zeros.init([d_out], device)),
        ..LinearConfig::new(d_in, d_out).with_bias(false).with_initializer(normal).init(device)
    }
}

/// A table of `vocab_size` vectors of `dim` channels, each entry `normal(0, 0.02)`.
pub fn embedding(vocab_size: usize, dim: usize, device: &Device) -> Embedding {
    let normal = Initializer::Normal { mean: 0.0, std: STANDARD_DEVIATION };
    EmbeddingConfig::new(vocab_size, dim).with_initializer(normal).init(device)
}

/// `normal(0, std)` without what lies beyond two deviations, drawn anew there.
pub fn truncated_normal<const D: usize>(shape: [usize; D], std: f64, device: &Device) -> Param<Tensor<D>> {
    let init = move |device: &Device, require_grad: bool| {
        let draw = || Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), device);
        // A draw lies outside with probability 0.046: after 8 rounds next to none does.
        let within = (0..8).fold(draw(), |kept, _| {
            let outside = kept.clone().abs().greater_elem(2.0);
            kept.mask_where(outside, draw())
        });
        within.clamp(-2.0, 2.0).mul_scalar(std).detach().set_require_grad(require_grad)
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into())
}

/// `A_log = log U(low, high)`, one value a head, `[heads]`.
///
/// The decay gate's rate is `exp(A_log)`; Kimi Delta Attention draws it from (1, 16), the gated
/// delta rule from (0, 16). Rates are held at 1e-4 and above.
///
/// # Panics
///
/// Unless `0 <= low < high`.
pub fn a_log(heads: usize, low: f64, high: f64, device: &Device) -> Param<Tensor<1>> {
    assert!(0.0 <= low && low < high, "a_log: need 0 <= low < high, got low = {low}, high = {high}");
    drawn(heads, device, move |shape, device| {
        // A draw of exactly 0 would make the logarithm infinite.
        Tensor::random(shape, Distribution::Uniform(low, high), device).clamp_min(1e-4).log()
    })
}

/// `dt_bias = softplus^-1(dt)` with `dt` log-uniform in `[low, high]`, one value a channel, `[channels]`.
///
/// `softplus^-1(dt) = dt + log(-expm1(-dt))`, so `softplus(dt_bias) = dt`. Published models draw
/// `dt` from `[1e-3, 0.1]`.
///
/// # Panics
///
/// Unless `0 < low < high`.
pub fn dt_bias(channels: usize, low: f64, high: f64, device: &Device) -> Param<Tensor<1>> {
    floored_dt_bias(channels, low, high, low, device)
}

/// As [`dt_bias`], with `dt = max(dt, floor)` after the draw (Mamba: 1e-4).
///
/// # Panics
///
/// Unless `0 < low < high` and `floor` is finite.
pub fn floored_dt_bias(
    channels: usize,
    low: f64,
    high: f64,
    floor: f64,
    device: &Device,
) -> Param<Tensor<1>> {
    assert!(0.0 < low && low < high, "dt_bias: need 0 < low < high, got low = {low}, high = {high}");
    assert!(floor.is_finite(), "dt_bias: `floor` is {floor}");
    drawn(channels, device, move |shape, device| {
        let dt = Tensor::<1>::random(shape, Distribution::Uniform(low.ln(), high.ln()), device).exp();
        let dt = dt.clamp_min(floor);
        // -expm1(-dt) = 2 exp(-dt/2) sinh(dt/2), exact for small dt where 1 - exp(-dt) is not.
        let growth = (dt.clone() * 0.5).sinh() * (dt.clone() * -0.5).exp() * 2.0;
        dt + growth.log()
    })
}

/// `A_log[c, n] = log(n + 1)`, the same in every channel, `[channels, size]`: the rates 1, 2, ..,
/// `size` that Mamba starts from (S4D-Real; arXiv 2312.00752, section 3.6).
pub fn a_log_range(channels: usize, size: usize, device: &Device) -> Param<Tensor<2>> {
    let init = move |device: &Device, require_grad: bool| {
        let rates: Vec<f64> = (1..=size).map(|rate| (rate as f64).ln()).collect();
        let row = Tensor::<1>::from_data(TensorData::new(rates, [size]), device);
        row.unsqueeze::<2>().repeat_dim(0, channels).set_require_grad(require_grad)
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), true, [channels, size].into())
}

/// A vector that is drawn when it is first read, so that loading a checkpoint costs no draw.
fn drawn<F>(size: usize, device: &Device, draw: F) -> Param<Tensor<1>>
where
    F: FnOnce([usize; 1], &Device) -> Tensor<1> + Send + Sync + 'static,
{
    let init = move |device: &Device, require_grad: bool| {
        draw([size], device).detach().set_require_grad(require_grad)
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), true, [size].into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{devices, values};

    fn moments(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn projections_and_embeddings_are_normal_with_deviation_two_hundredths() {
        for device in devices() {
            device.seed(7);
            let layer = linear(200, 100, true, &device);
            let (mean, deviation) = moments(&values(layer.weight.val()));
            assert!(mean.abs() < 1e-3, "mean {mean}");
            assert!((deviation - 0.02).abs() < 1e-3, "deviation {deviation}");
            let bias = layer.bias.expect("a bias was asked for").val();
            assert_eq!(values(bias), vec![0.0; 100]);
            assert!(linear(4, 4, false, &device).bias.is_none());

            let table = embedding(200, 100, &device);
            let (mean, deviation) = moments(&values(table.weight.val()));
            assert!(mean.abs() < 1e-3, "mean {mean}");
            assert!((deviation - 0.02).abs() < 1e-3, "deviation {deviation}");
        }
    }

    #[test]
    fn decay_parameters_lie_in_their_ranges() {
        for device in devices() {
            device.seed(3);
            let rates = values(a_log(500, 1.0, 16.0, &device).val());
            assert!(rates.iter().all(|a| (0.0..=16f64.ln() + 1e-6).contains(a)));
            assert!(moments(&rates).1 > 0.3);

            // softplus undoes the inverse: the steps lie log-uniformly in the range.
            let steps: Vec<f64> =
                values(dt_bias(500, 1e-3, 0.1, &device).val()).iter().map(|b| b.exp().ln_1p()).collect();
            assert!(steps.iter().all(|dt| (0.999e-3..=0.1001).contains(dt)), "{steps:?}");
            let held = floored_dt_bias(500, 1e-3, 0.1, 0.02, &device).val();
            let held: Vec<f64> = values(held).iter().map(|b| b.exp().ln_1p()).collect();
            assert!(held.iter().all(|dt| (0.01999..=0.1001).contains(dt)), "{held:?}");
            assert!(held.iter().filter(|dt| (*dt - 0.02).abs() < 1e-5).count() > 200, "most are held");

            let logs: Vec<f64> = steps.iter().map(|dt| dt.ln()).collect();
            let (mean, deviation) = moments(&logs);
            assert!((mean - 1e-2f64.ln()).abs() < 0.25, "mean {mean}");
            assert!((deviation - 100f64.ln() / 12f64.sqrt()).abs() < 0.15, "deviation {deviation}");
        }
    }

    #[test]
    fn rates_of_a_range_count_up_in_every_channel() {
        for device in devices() {
            let rates = a_log_range(2, 3, &device).val().exp();
            let expected = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0];
            assert!(values(rates).iter().zip(expected).all(|(got, rate)| (got - rate).abs() < 1e-6));
        }
    }

    #[test]
    fn drawn_parameters_are_trained_on_an_autodiff_device() {
        for device in devices() {
            assert!(a_log(3, 1.0, 16.0, &device.clone().autodiff()).val().is_require_grad());
            assert!(a_log_range(3, 2, &device.clone().autodiff()).val().is_require_grad());
            assert!(dt_bias(3, 1e-3, 0.1, &device.autodiff()).val().is_require_grad());
        }
    }
}
