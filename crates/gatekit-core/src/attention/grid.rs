//! Rotary positions on a grid.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::common::widen;
use crate::error::ConfigError;

/// Rotary positions of the cells of a square grid, row by row, after some positions without one.
///
/// Adjacent channels are a pair (a, b), which becomes `(a cos - b sin, b cos + a sin)`. The first
/// half of the pairs turns by the row, the other half by the column, each with angles
/// `row * theta^(-2j / (dim / 2))`, `j = 0 .. dim / 4`. A position before the grid (a class, a
/// prompt) has `(cos, sin) = (0, 0)`: its channels become 0. Sun et al., "Autoregressive Model Beats
/// Diffusion: Llama for Scalable Image Generation" (arXiv 2406.06525), and its code.
#[derive(Debug, Clone)]
pub struct GridRotaryEmbedding {
    dim: usize,
    grid_size: usize,
    prefix: usize,
    theta: f64,
    table: Arc<Mutex<Option<GridTable>>>,
}

/// Cosines and sines `[positions, dim / 2]`.
#[derive(Debug, Clone)]
struct GridTable {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl GridRotaryEmbedding {
    /// For heads of `dim` channels, a grid of `grid_size` rows and columns, `prefix` positions before
    /// it, and base `theta`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when `dim` is not divisible by 4, a size is 0, or `theta` not a finite number
    /// above 0.
    pub fn new(dim: usize, grid_size: usize, prefix: usize, theta: f64) -> Result<Self, ConfigError> {
        if dim == 0 || !dim.is_multiple_of(4) {
            return Err(ConfigError::new("head_dim", dim, "a multiple of 4: pairs for rows and for columns"));
        }
        if grid_size == 0 {
            return Err(ConfigError::new("grid_size", grid_size, "at least 1"));
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(ConfigError::new("rope_theta", theta, "a finite number above 0"));
        }
        Ok(Self { dim, grid_size, prefix, theta, table: Arc::default() })
    }

    /// Positions there are: those before the grid and its cells.
    pub fn positions(&self) -> usize {
        self.prefix + self.grid_size * self.grid_size
    }

    /// Rotates `x` `[batch, time, heads, dim]`, whose first step stands at position `offset`.
    ///
    /// # Panics
    ///
    /// When `x` does not have `dim` channels a head or goes beyond the grid.
    pub fn apply(&self, x: Tensor<4>, offset: usize) -> Tensor<4> {
        let ([batch, time, heads, dim], half, dtype) = (x.dims(), self.dim / 2, x.dtype());
        assert!(
            dim == self.dim && offset + time <= self.positions(),
            "GridRotaryEmbedding: `x` {:?} from position {offset} on, the grid has heads of {} channels and {} \
             positions",
            x.dims(),
            self.dim,
            self.positions()
        );
        let x = widen(x);
        let table = self.table(&x);
        let part = |table: Tensor<2>| table.narrow(0, offset, time).reshape([1, time, 1, half, 1]);
        let (cos, sin) = (part(table.cos), part(table.sin));
        let pairs = x.reshape([batch, time, heads, half, 2]);
        let (a, b) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
        let turned = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
        Tensor::cat(turned, 4).reshape([batch, time, heads, dim]).cast(dtype)
    }

    /// The table on the device of `x` and in its (widened) type; the last one is kept.
    fn table(&self, x: &Tensor<4>) -> GridTable {
        let device = x.device().inner();
        let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let mut kept = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |table: &GridTable| table.cos.device() == device && table.cos.dtype() == dtype;
        if !kept.as_ref().is_some_and(fits) {
            *kept = Some(self.compute(dtype, &device));
        }
        kept.clone().expect("filled above")
    }

    fn compute(&self, dtype: DType, device: &Device) -> GridTable {
        let quarter = self.dim / 4;
        let rate = |j: usize| self.theta.powf(-2.0 * j as f64 / (self.dim / 2) as f64);
        let zeros = std::iter::repeat_n((0.0, 0.0), self.prefix * 2 * quarter);
        let cells = (0..self.grid_size * self.grid_size).flat_map(|cell| {
            [cell / self.grid_size, cell % self.grid_size].into_iter().flat_map(move |coordinate| {
                (0..quarter).map(move |j| (coordinate as f64 * rate(j)).sin_cos())
            })
        });
        let (sin, cos): (Vec<f64>, Vec<f64>) = zeros.chain(cells).unzip();
        let shape = [self.positions(), 2 * quarter];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), (device, dtype));
        GridTable { cos: tensor(cos), sin: tensor(sin) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, devices, float32, float64, ramp, values};

    #[test]
    fn rows_and_columns_turn_their_own_pairs() {
        let (dim, heads, grid, theta) = (8, 2, 3, 100.0);
        let x = ramp(10 * heads * dim, 1.0);
        let expected: Vec<f64> = (0..x.len())
            .map(|i| {
                let (channel, position) = (i % dim, i / (heads * dim));
                let Some(cell) = position.checked_sub(1) else { return 0.0 };
                let pair = channel / 2;
                let coordinate = if pair < 2 { cell / grid } else { cell % grid };
                let angle = coordinate as f64 * f64::powf(theta, -2.0 * (pair % 2) as f64 / 4.0);
                let (a, b) = (x[i - channel % 2], x[i - channel % 2 + 1]);
                match channel % 2 {
                    0 => a * angle.cos() - b * angle.sin(),
                    _ => b * angle.cos() + a * angle.sin(),
                }
            })
            .collect();
        for device in devices() {
            let rotary = GridRotaryEmbedding::new(dim, grid, 1, theta).unwrap();
            assert_eq!(rotary.positions(), 10);
            let input = float32(&x, [1, 10, heads, dim], &device);
            assert_close(&values(rotary.apply(input.clone(), 0)), &expected, 1e-6);
            let exact = rotary.apply(float64(&x, [1, 10, heads, dim], &device), 0);
            assert_close(&values(exact), &expected, 1e-12);
            // A piece from the middle.
            let piece = rotary.apply(input.narrow(1, 4, 3), 4);
            assert_close(&values(piece), &expected[4 * heads * dim..7 * heads * dim], 1e-6);
        }
    }

    #[test]
    fn refuses_bad_sizes() {
        let field = |dim, grid, theta| GridRotaryEmbedding::new(dim, grid, 1, theta).unwrap_err().field;
        assert_eq!(field(6, 3, 100.0), "head_dim");
        assert_eq!(field(0, 3, 100.0), "head_dim");
        assert_eq!(field(8, 0, 100.0), "grid_size");
        assert_eq!(field(8, 3, f64::NAN), "rope_theta");
    }

    #[test]
    #[should_panic(expected = "the grid has heads of 4 channels and 5 positions")]
    fn positions_beyond_the_grid_panic() {
        let rotary = GridRotaryEmbedding::new(4, 2, 1, 100.0).unwrap();
        rotary.apply(Tensor::zeros([1, 2, 1, 4], &devices().remove(0)), 4);
    }
}
