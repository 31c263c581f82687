//! Where a step stands in its sequence.

use burn::tensor::{Device, Tensor, TensorData};

/// Rows `[sin(t w_i), cos(t w_i)]`, `w_i = 10000^(-i / (h - 1))`, i = 0 .. h - 1, h = dim / 2, for the steps
/// t = 1 .. steps; `[1, steps, dim]`. Odd widths end in a 0.
pub(super) fn sinusoidal_positions(steps: usize, dim: usize, device: &Device) -> Tensor<3> {
    let half = dim / 2;
    let rate = |i: usize| 10_000f64.powf(-(i as f64) / (half.max(2) - 1) as f64);
    let table = (1..=steps).flat_map(|step| {
        let angle = move |i: usize| step as f64 * rate(i);
        let waves = (0..half).map(move |i| angle(i).sin()).chain((0..half).map(move |i| angle(i).cos()));
        waves.chain(std::iter::repeat_n(0.0, dim - 2 * half))
    });
    Tensor::from_data(TensorData::new(table.collect::<Vec<f64>>(), [1, steps, dim]), device)
}
