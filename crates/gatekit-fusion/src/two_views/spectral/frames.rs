//! Products of a wave with windows that lie a hop apart.

use burn::tensor::{Tensor, TensorData};

/// Rows of equal length, one below the other, on the host.
#[derive(Debug, Clone)]
pub(super) struct Table {
    values: Vec<f64>,
    columns: usize,
}

impl Table {
    /// `value(row, column)`.
    pub fn new(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let place = |place: usize| value(place / columns, place % columns);
        Self { values: (0..rows * columns).map(place).collect(), columns }
    }

    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// `[rows, columns]`, on the device and in the type of `like`.
    pub fn tensor<const D: usize>(&self, like: &Tensor<D>) -> Tensor<2> {
        let data = TensorData::new(self.values.clone(), [self.rows(), self.columns]);
        Tensor::from_data(data, (&like.device(), like.dtype()))
    }

    /// `[rows / block, block, columns]`, with rows of 0 added to whole blocks.
    fn blocks<const D: usize>(&self, block: usize, like: &Tensor<D>) -> Tensor<3> {
        let count = self.rows().div_ceil(block);
        let mut values = self.values.clone();
        values.resize(count * block * self.columns, 0.0);
        Tensor::from_data(
            TensorData::new(values, [count, block, self.columns]),
            (&like.device(), like.dtype()),
        )
    }
}

/// `y[b, t, m] = sum_n wave[b, t hop + n] windows[n, m]` for T = `frames`: `wave` `[B, L]` and `windows` `[N, M]` to
/// `[B, T, M]`. Past its end the wave is 0.
pub(super) fn products(wave: Tensor<2>, windows: &Table, hop: usize, frames: usize) -> Tensor<3> {
    let [batch, length] = wave.dims();
    // The frames overlap: the wave is cut into hops, and every hop of a window is one product, instead of copying each
    // sample into all its frames.
    let windows = windows.blocks(hop, &wave);
    let [count, _, columns] = windows.dims();
    let needed = (frames - 1 + count) * hop;
    let wave = match needed.checked_sub(length) {
        Some(0) => wave,
        Some(missing) => {
            let zeros = Tensor::zeros([batch, missing], (&wave.device(), wave.dtype()));
            Tensor::cat(vec![wave, zeros], 1)
        }
        None => wave.narrow(1, 0, needed),
    };
    let hops = wave.reshape([batch, frames - 1 + count, hop]);
    let product = |block: usize| {
        let window = windows.clone().narrow(0, block, 1).squeeze_dim::<2>(0);
        let rows = hops.clone().narrow(1, block, frames).reshape([batch * frames, hop]);
        rows.matmul(window)
    };
    let sum = (1..count).map(product).fold(product(0), |sum, part| sum + part);
    sum.reshape([batch, frames, columns])
}

/// Sums of squares of two halves of the last axis, real and imaginary parts: `[B, T, 2 M]` to `[B, T, M]`.
pub(super) fn power(parts: Tensor<3>) -> Tensor<3> {
    let bins = parts.dims()[2] / 2;
    parts.clone().narrow(2, 0, bins).square() + parts.narrow(2, bins, bins).square()
}

/// The periodic Hann window of length `n`: `0.5 - 0.5 cos(2 pi i / n)`.
pub(super) fn hann(i: usize, n: usize) -> f64 {
    0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / n as f64).cos()
}

impl Table {
    /// Columns without a value above 0.
    pub fn empty_columns(&self) -> Vec<usize> {
        let filled =
            |column: &usize| self.values.iter().skip(*column).step_by(self.columns).any(|v| *v > 0.0);
        (0..self.columns).filter(|column| !filled(column)).collect()
    }
}
