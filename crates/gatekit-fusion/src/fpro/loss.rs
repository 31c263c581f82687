//! How far a restored image is from the clean one.

use burn::tensor::{Tensor, TensorData};
use gatekit_core::fourier::{Spectrum, rfft2};
use gatekit_core::widen;

/// `mean |e| + fft_weight mean |F(e)|` with `e = restored - target` and F the whole two-dimensional transform, over all of
/// whose real and imaginary parts the second mean goes: `[1]`, in at least float32.
///
/// `restored` and `target` `[B, C, H, W]`. Zhou et al. (ECCV 2024), with `fft_weight` 0.1.
///
/// # Panics
///
/// When the shapes differ, or there is no pixel.
pub fn restoration_loss(restored: Tensor<4>, target: Tensor<4>, fft_weight: f64) -> Tensor<1> {
    assert_same("restoration_loss", &restored, &target);
    let error = widen(restored) - widen(target);
    let pixels = error.clone().abs().mean();
    if fft_weight == 0.0 {
        return pixels;
    }
    let [batch, channels, height, width] = error.dims();
    let Spectrum { re, im } = rfft2(error);
    // Half of the spectrum stands for the whole: a column that is not its own mirror image counts twice.
    let twice: Vec<f64> =
        (0..=width / 2).map(|v| if (2 * v).is_multiple_of(width) { 1.0 } else { 2.0 }).collect();
    let columns = twice.len();
    let twice =
        Tensor::<4>::from_data(TensorData::new(twice, [1, 1, 1, columns]), (&re.device(), re.dtype()));
    let sum = ((re.abs() + im.abs()) * twice).sum();
    pixels + sum.mul_scalar(fft_weight / (2 * batch * channels * height * width) as f64)
}

/// Peak signal-to-noise ratio of each image in dB, `-10 log10(mean (restored - target)^2)`, after clamping to [0, 1]:
/// `[B]`. Equal images have 120 dB.
///
/// # Panics
///
/// When the shapes differ, or there is no pixel.
pub fn psnr(restored: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    assert_same("psnr", &restored, &target);
    let [batch, channels, height, width] = restored.dims();
    let error = widen(restored).clamp(0.0, 1.0) - widen(target);
    let mean = error.square().reshape([batch, channels * height * width]).mean_dim(1).reshape([batch]);
    mean.clamp_min(1e-12).log().mul_scalar(-10.0 / std::f64::consts::LN_10)
}

fn assert_same(of: &str, restored: &Tensor<4>, target: &Tensor<4>) {
    assert!(
        restored.dims() == target.dims() && restored.shape().num_elements() > 0,
        "{of}: `restored` {:?} and `target` {:?} are not images of one size",
        restored.dims(),
        target.dims()
    );
}
