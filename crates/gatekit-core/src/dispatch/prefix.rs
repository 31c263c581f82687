//! A chain of stages of which every row runs as many as it needs: layers with early exits, learners added up.
//!
//! Rows are sorted once, by falling number of stages, so that those of one depth stand together and go through their
//! stages as one piece; a row costs what it runs.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use gatekit_kernels::rows::{RowMap, combine_rows};

use crate::error::InputError;

/// Rows sorted by falling depth, the number of stages that they run.
///
/// ```
/// use gatekit_core::dispatch::PrefixPlan;
///
/// let plan = PrefixPlan::new(&[1, 0, 3, 1], 3).unwrap();
/// assert_eq!(plan.order(), [2, 0, 3, 1]);
/// assert_eq!(plan.counts(), [3, 1, 1]); // rows of the first, second, third stage
/// assert_eq!(plan.executed(), 5);
/// assert!(PrefixPlan::new(&[4], 3).is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixPlan {
    order: Vec<usize>,
    counts: Vec<usize>,
}

impl PrefixPlan {
    /// For rows that run `depths` of the `stages`. Rows of equal depth keep their order.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a depth above the number of stages.
    pub fn new(depths: &[usize], stages: usize) -> Result<Self, InputError> {
        if let Some((row, depth)) = depths.iter().enumerate().find(|(_, depth)| **depth > stages) {
            let got = format!("{depth} stages for row {row}");
            return Err(InputError::new("depths", got, format!("at most {stages}")));
        }
        // A counting sort, which is stable: rows of depth k come behind those of every greater depth.
        let mut starts = vec![0; stages + 2];
        depths.iter().for_each(|depth| starts[stages - depth + 1] += 1);
        for place in 1..starts.len() {
            starts[place] += starts[place - 1];
        }
        // Stage i (from 0) is run by the rows whose depth is above i.
        let counts = (0..stages).map(|stage| starts[stages - stage]).collect();
        let mut order = vec![0; depths.len()];
        for (row, depth) in depths.iter().enumerate() {
            let next = &mut starts[stages - depth];
            order[*next] = row;
            *next += 1;
        }
        Ok(Self { order, counts })
    }

    /// As [`new`](Self::new), with depths of any shape read back from the device, in row-major order.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a depth below 0 or above the number of stages.
    pub fn from_tensor<const D: usize>(depths: &Tensor<D, Int>, stages: usize) -> Result<Self, InputError> {
        let depths: Vec<i64> = depths.clone().into_data().iter::<i64>().collect();
        let depths = depths.into_iter().map(|depth| {
            usize::try_from(depth)
                .map_err(|_| InputError::new("depths", depth, format!("between 0 and {stages}")))
        });
        Self::new(&depths.collect::<Result<Vec<_>, _>>()?, stages)
    }

    /// Number of rows N.
    pub fn rows(&self) -> usize {
        self.order.len()
    }

    /// Number of stages.
    pub fn stages(&self) -> usize {
        self.counts.len()
    }

    /// The rows in their sorted order, N entries.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// How many rows run each stage: the first `counts[i]` of the sorted ones run stage i. They fall.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// Rows run by all stages together.
    pub fn executed(&self) -> usize {
        self.counts.iter().sum()
    }

    /// The depths that have rows, the deepest first, and where these stand in the sorted order.
    pub fn by_depth(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let counts = |depth: usize| if depth == 0 { self.rows() } else { self.counts[depth - 1] };
        (0..=self.stages()).rev().filter_map(move |depth| {
            let deeper = if depth == self.stages() { 0 } else { self.counts[depth] };
            let rows = deeper..counts(depth);
            (!rows.is_empty()).then_some((depth, rows))
        })
    }

    /// The rows of `x` `[N, ..]` in sorted order, without a copy where they are sorted already. Differentiable.
    ///
    /// # Panics
    ///
    /// When `x` does not have N rows.
    pub fn gather<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.check("x", x.dims());
        if self.order.is_sorted() { x } else { permuted(x, self.order.clone()) }
    }

    /// Sorted rows `y` `[N, ..]` in the order that they had: the inverse of [`gather`](Self::gather). Differentiable.
    ///
    /// # Panics
    ///
    /// When `y` does not have N rows.
    pub fn restore<const D: usize>(&self, y: Tensor<D>) -> Tensor<D> {
        self.check("y", y.dims());
        if self.order.is_sorted() {
            return y;
        }
        let mut places = vec![0; self.rows()];
        self.order.iter().enumerate().for_each(|(place, row)| places[*row] = place);
        permuted(y, places)
    }

    fn check<const D: usize>(&self, name: &str, dims: [usize; D]) {
        assert!(dims[0] == self.rows(), "PrefixPlan: `{name}` {dims:?} needs {} rows", self.rows());
    }
}

/// Row `order[i]` of `x` `[N, ..]` as row i.
fn permuted<const D: usize>(x: Tensor<D>, order: Vec<usize>) -> Tensor<D> {
    let dims = x.dims();
    let map = Arc::new(RowMap::picking(order.len(), order));
    combine_rows(x.reshape([dims[0], dims[1..].iter().product()]), &map).reshape(dims)
}

/// Runs the rows of every depth through their stages as one piece: `y_r = run(k, x_r)` for the rows r of depth k.
///
/// `run(k, rows)` is called once for every depth k that has rows, 0 included, with these rows of `x` `[N, ..]` in the
/// order of `x`, and does the work of stages 0 .. k-1: layers one after the other, or learners that are columns of one
/// matrix as one product. The result `[N, ..]` is in the order of `x`. Gradients flow through whatever `run` computes,
/// and both directions cost what the executed rows cost.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use gatekit_core::dispatch::{PrefixPlan, depth_execute};
///
/// let plan = PrefixPlan::new(&[1, 0, 2], 2).unwrap();
/// let x = Tensor::<2>::from_data([[1.0], [2.0], [3.0]], &Device::flex());
/// let y = depth_execute(x, &plan, |depth, rows| (0..depth).fold(rows, |rows, _stage| rows.mul_scalar(10.0)));
/// assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [10.0, 2.0, 300.0]);
/// # }
/// ```
///
/// # Panics
///
/// When `x` does not have N rows, N is 0, or `run` returns another number of rows than it was given.
pub fn depth_execute<const C: usize, const D: usize>(
    x: Tensor<C>,
    plan: &PrefixPlan,
    mut run: impl FnMut(usize, Tensor<C>) -> Tensor<D>,
) -> Tensor<D> {
    let x = plan.gather(x);
    let parts: Vec<Tensor<D>> = (plan.by_depth())
        .map(|(depth, rows)| {
            let count = rows.len();
            let part = run(
                depth,
                if count == plan.rows() { x.clone() } else { x.clone().narrow(0, rows.start, count) },
            );
            let got = part.dims()[0];
            assert!(got == count, "depth_execute: depth {depth} made {got} rows of {count}");
            part
        })
        .collect();
    assert!(!parts.is_empty(), "depth_execute: no rows");
    plan.restore(if parts.len() == 1 {
        parts.into_iter().next().expect("one")
    } else {
        Tensor::cat(parts, 0)
    })
}
