//! Rotary positions.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::common::{indices, widen};
use crate::error::ConfigError;
use crate::sequence::Boundaries;

/// Rotary position embedding, half-rotation form, on the first `dim` channels of each head.
///
/// With `x_1`, `x_2` the two halves of these channels and angles `position * theta^(-2i/dim)`:
/// `[x_1 cos - x_2 sin, x_2 cos + x_1 sin]`. Further channels pass unchanged (a partial rotation).
/// Angles are computed in float64, so far positions stay exact; the last table of sines and cosines
/// is kept and shared by clones. Su et al., RoFormer (arXiv 2104.09864), eq. 34, in GPT-NeoX's order
/// of channels.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    dim: usize,
    theta: f64,
    /// 1, or -1 against the usual sense.
    sense: f64,
    table: Arc<Mutex<Option<RotaryTable>>>,
}

/// Cosines and sines `[positions, dim / 2]` of consecutive positions.
#[derive(Debug, Clone)]
struct RotaryTable {
    first: usize,
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl RotaryEmbedding {
    /// For `dim` rotated channels and base `theta` (10000 in the paper).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when `dim` is odd or 0, or `theta` not a finite number above 0.
    pub fn new(dim: usize, theta: f64) -> Result<Self, ConfigError> {
        if dim == 0 || dim % 2 == 1 {
            return Err(ConfigError::new("head_dim", dim, "an even number of rotated channels, at least 2"));
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(ConfigError::new("rope_theta", theta, "a finite number above 0"));
        }
        Ok(Self { dim, theta, sense: 1.0, table: Arc::default() })
    }

    /// The rotation against the usual sense: `[x_1 cos + x_2 sin, x_2 cos - x_1 sin]`.
    pub fn reversed(self) -> Self {
        Self { sense: -self.sense, table: Arc::default(), ..self }
    }

    /// Rotates `x` `[batch, time, heads, >= dim]`, whose first step stands at position `offset`.
    ///
    /// # Panics
    ///
    /// When a head of `x` has fewer channels than are rotated.
    pub fn apply(&self, x: Tensor<4>, offset: usize) -> Tensor<4> {
        let time = x.dims()[1];
        let table = self.positions(offset, time, &x);
        self.rotate(x, table.cos, table.sin)
    }

    /// Rotates packed sequences `[1, time, heads, >= dim]`: positions start at 0 in every segment.
    ///
    /// # Panics
    ///
    /// When `x` does not have the time of the boundaries, or as [`apply`](Self::apply).
    pub fn apply_packed(&self, x: Tensor<4>, boundaries: &Boundaries) -> Tensor<4> {
        assert!(
            x.dims()[1] == boundaries.time(),
            "RotaryEmbedding: `x` {:?} does not have the {} steps of the boundaries",
            x.dims(),
            boundaries.time()
        );
        let positions = boundaries.position_in_segment();
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        let table = self.positions(0, longest, &x);
        let positions = indices(positions, &table.cos.device());
        self.rotate(x, table.cos.select(0, positions.clone()), table.sin.select(0, positions))
    }

    fn rotate(&self, x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<4> {
        let ([_, time, _, width], half, dtype) = (x.dims(), self.dim / 2, x.dtype());
        assert!(
            width >= self.dim,
            "RotaryEmbedding: heads of `x` {:?} have fewer than {} channels",
            x.dims(),
            self.dim
        );
        let x = widen(x);
        let (cos, sin) = (cos.reshape([1, time, 1, half]), sin.reshape([1, time, 1, half]));
        let (first, second) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let mut parts =
            vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
        if width > self.dim {
            parts.push(x.narrow(3, self.dim, width - self.dim));
        }
        Tensor::cat(parts, 3).cast(dtype)
    }

    /// The table of positions `first .. first + count`, on the device of `x` and in its (widened) type.
    fn positions(&self, first: usize, count: usize, x: &Tensor<4>) -> RotaryTable {
        let device = x.device().inner();
        let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let mut kept = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let covers = |table: &RotaryTable| {
            table.cos.device() == device
                && table.cos.dtype() == dtype
                && table.first <= first
                && first + count <= table.first + table.cos.dims()[0]
        };
        if !kept.as_ref().is_some_and(covers) {
            // From the start, lengths vary from call to call: round up so that the next one fits too.
            let count = if first == 0 { count.next_power_of_two() } else { count };
            *kept = Some(self.compute(first, count, dtype, &device));
        }
        let table = kept.as_ref().expect("filled above");
        let slice = |part: &Tensor<2>| part.clone().narrow(0, first - table.first, count);
        RotaryTable { first, cos: slice(&table.cos), sin: slice(&table.sin) }
    }

    fn compute(&self, first: usize, count: usize, dtype: DType, device: &Device) -> RotaryTable {
        let half = self.dim / 2;
        let rates: Vec<f64> = (0..half).map(|i| self.theta.powf(-2.0 * i as f64 / self.dim as f64)).collect();
        let (sin, cos): (Vec<f64>, Vec<f64>) = (first..first + count)
            .flat_map(|position| {
                rates.iter().map(move |rate| (self.sense * position as f64 * rate).sin_cos())
            })
            .unzip();
        let tensor = |values| Tensor::from_data(TensorData::new(values, [count, half]), (device, dtype));
        RotaryTable { first, cos: tensor(cos), sin: tensor(sin) }
    }
}

/// Channels `(2j, 2j + 1)` of `x` `[batch, time, heads, dim]` to `(j, j + dim / 2)`, where [`RotaryEmbedding`] rotates
/// them as a pair: queries and keys of models that rotate neighbouring channels (LLaMA as first released) go through
/// it before the rotation. Scores do not see the order of channels, as long as queries and keys have the same.
///
/// # Panics
///
/// For an odd `dim`.
pub fn pairs_to_halves(x: Tensor<4>) -> Tensor<4> {
    let [batch, time, heads, dim] = x.dims();
    assert!(dim % 2 == 0, "pairs_to_halves: `x` {:?} has an odd number of channels", x.dims());
    x.reshape([batch, time, heads, dim / 2, 2]).swap_dims(3, 4).reshape([batch, time, heads, dim])
}
