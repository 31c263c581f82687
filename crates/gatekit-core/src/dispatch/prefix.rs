//! A chain of stages of which every row runs as many as it needs: layers with early exits, learners added up.
//!
//! Rows are sorted once, by falling number of stages. Stage i then runs on the first rows, a prefix that only
//! shrinks: nothing is gathered between stages, and rows that are done cost nothing.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use crate::common::indices;
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

    /// The rows of every depth that has some, the deepest first: depth and rows.
    pub fn by_depth(&self) -> impl Iterator<Item = (usize, &[usize])> {
        let counts = |depth: usize| if depth == 0 { self.rows() } else { self.counts[depth - 1] };
        (0..=self.stages()).rev().filter_map(move |depth| {
            let deeper = if depth == self.stages() { 0 } else { self.counts[depth] };
            let rows = &self.order[deeper..counts(depth)];
            (!rows.is_empty()).then_some((depth, rows))
        })
    }

    /// The rows of `x` `[N, ..]` in sorted order, without a copy where they are sorted already. Differentiable.
    ///
    /// # Panics
    ///
    /// When `x` does not have N rows.
    pub fn gather<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.gather_first(x, self.rows())
    }

    /// The first `rows` of [`gather`](Self::gather), `[rows, ..]`: those that run stage i, with `counts()[i]` rows.
    ///
    /// # Panics
    ///
    /// When `x` does not have N rows, or fewer are there than asked for.
    pub fn gather_first<const D: usize>(&self, x: Tensor<D>, rows: usize) -> Tensor<D> {
        self.check("x", x.dims());
        assert!(rows <= self.rows(), "PrefixPlan: {rows} rows asked for, the plan has {}", self.rows());
        if rows == 0 {
            let mut dims = x.dims();
            dims[0] = 0;
            return Tensor::zeros(dims, (&x.device(), x.dtype()));
        }
        if self.order[..rows].iter().enumerate().all(|(place, row)| place == *row) {
            return first_rows(x, 0, rows);
        }
        let order = indices(self.order[..rows].to_vec(), &x.device());
        x.select(0, order)
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
        let places = indices(places, &y.device());
        y.select(0, places)
    }

    fn check<const D: usize>(&self, name: &str, dims: [usize; D]) {
        assert!(dims[0] == self.rows(), "PrefixPlan: `{name}` {dims:?} needs {} rows", self.rows());
    }
}

/// What stages hand on: sorted rows that still run, of which the last ones finish after every stage.
pub trait PrefixState<const D: usize>: Sized {
    /// Rows held.
    fn row_count(&self) -> usize;

    /// The first `rows` of the state, and the results of those behind them.
    fn keep_first(self, rows: usize) -> (Self, Tensor<D>);

    /// The results of all rows that are left.
    fn finish(self) -> Tensor<D>;
}

/// A stage replaces the rows: layers with early exits.
impl<const D: usize> PrefixState<D> for Tensor<D> {
    fn row_count(&self) -> usize {
        self.dims()[0]
    }

    fn keep_first(self, rows: usize) -> (Self, Tensor<D>) {
        let left = self.dims()[0] - rows;
        (first_rows(self.clone(), 0, rows), first_rows(self, rows, left))
    }

    fn finish(self) -> Tensor<D> {
        self
    }
}

/// Inputs that all stages share, and the results so far: learners whose outputs are added up.
impl<const C: usize, const D: usize> PrefixState<D> for (Tensor<C>, Tensor<D>) {
    fn row_count(&self) -> usize {
        self.1.dims()[0]
    }

    fn keep_first(self, rows: usize) -> (Self, Tensor<D>) {
        let (running, finished) = self.1.keep_first(rows);
        ((first_rows(self.0, 0, rows), running), finished)
    }

    fn finish(self) -> Tensor<D> {
        self.1
    }
}

/// Runs `stage(i, state)`, i from 0, on the rows that run stage i, and gives all results in sorted order, `[N, ..]`.
///
/// A row of depth k ends with what stages 0 .. k-1 made of it; one of depth 0 as it came. A stage that no row runs is
/// not called. `state` holds the rows as [`PrefixPlan::gather`] sorts them; [`PrefixPlan::restore`] puts results back
/// in place. Gradients flow through whatever the stages compute, and both directions cost what the executed rows cost.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use gatekit_core::dispatch::{PrefixPlan, prefix_execute};
///
/// let plan = PrefixPlan::new(&[1, 0, 2], 2).unwrap();
/// let x = Tensor::<2>::from_data([[1.0], [2.0], [3.0]], &Device::flex());
/// let y = prefix_execute(plan.gather(x), &plan, |_stage, rows| rows.mul_scalar(10.0));
/// assert_eq!(plan.restore(y).into_data().to_vec::<f32>().unwrap(), [10.0, 2.0, 300.0]);
/// # }
/// ```
///
/// # Panics
///
/// When `state` does not hold N rows, or a stage returns another number of rows than it was given.
pub fn prefix_execute<const D: usize, S: PrefixState<D>>(
    state: S,
    plan: &PrefixPlan,
    mut stage: impl FnMut(usize, S) -> S,
) -> Tensor<D> {
    assert!(
        state.row_count() == plan.rows(),
        "prefix_execute: `state` holds {} rows, the plan {}",
        state.row_count(),
        plan.rows()
    );
    let mut state = state;
    // In the order in which rows finish: from the last to the first.
    let mut finished = Vec::new();
    for (index, &rows) in plan.counts().iter().enumerate().filter(|(_, rows)| **rows > 0) {
        if rows < state.row_count() {
            let (running, done) = state.keep_first(rows);
            finished.push(done);
            state = running;
        }
        state = stage(index, state);
        assert!(
            state.row_count() == rows,
            "prefix_execute: stage {index} made {} rows of {rows}",
            state.row_count()
        );
    }
    finished.push(state.finish());
    finished.reverse();
    match finished.len() {
        1 => finished.remove(0),
        _ => Tensor::cat(finished, 0),
    }
}

/// Where k stages are as good as one: `y_r = start_r + at_once(k, x_r)` for the rows r of depth k, and `start` for those
/// of depth 0.
///
/// `at_once(k, rows)` is called once for every depth k >= 1 that has rows, with these rows of `x` `[N, ..]`, and does
/// the work of stages 0 .. k-1 in one piece: learners that are columns of one matrix, say. As many rows run as many
/// stages as in [`prefix_execute`], but results are written once instead of once a stage. `start` and the result are
/// `[N, ..]` in the order of `x`.
///
/// # Panics
///
/// When `x` or `start` do not have N rows, or results of another number of rows come back.
pub fn depth_execute<const C: usize, const D: usize>(
    x: Tensor<C>,
    start: Tensor<D>,
    plan: &PrefixPlan,
    mut at_once: impl FnMut(usize, Tensor<C>) -> Tensor<D>,
) -> Tensor<D> {
    plan.check("x", x.dims());
    plan.check("start", start.dims());
    let mut y = start;
    for (depth, rows) in plan.by_depth().filter(|(depth, _)| *depth > 0) {
        if rows.len() == plan.rows() {
            return y + at_once(depth, x);
        }
        let rows = indices(rows.to_vec(), &x.device());
        let part = at_once(depth, x.clone().select(0, rows.clone()));
        y = y.select_assign(0, rows, part, IndexingUpdateOp::Add);
    }
    y
}

/// Rows `start .. start + rows`, the tensor itself where they are all of it.
fn first_rows<const D: usize>(x: Tensor<D>, start: usize, rows: usize) -> Tensor<D> {
    match x.dims()[0] == rows {
        true => x,
        false => x.narrow(0, start, rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, float64, ramp, values};

    #[test]
    fn rows_are_sorted_by_falling_depth_and_stably() {
        let plan = PrefixPlan::new(&[1, 3, 0, 1, 3, 2], 4).unwrap();
        assert_eq!(plan.order(), [1, 4, 5, 0, 3, 2]);
        assert_eq!(plan.counts(), [5, 3, 2, 0]);
        assert_eq!((plan.rows(), plan.stages(), plan.executed()), (6, 4, 10));
        for (depths, counts) in [(vec![0; 3], [0, 0]), (vec![2; 3], [3, 3]), (vec![], [0, 0])] {
            let plan = PrefixPlan::new(&depths, 2).unwrap();
            assert_eq!(plan.counts(), counts);
            assert!(plan.order().is_sorted());
        }
        assert_eq!(PrefixPlan::new(&[0, 0], 0).unwrap().order(), [0, 1]);
    }

    #[test]
    fn depths_that_are_none_are_refused() {
        let error = PrefixPlan::new(&[0, 5], 4).unwrap_err();
        assert_eq!((error.field.as_str(), error.got.as_str()), ("depths", "5 stages for row 1"));
        for device in devices() {
            let depths = Tensor::<2, Int>::from_data([[0, 1], [-1, 0]], &device);
            assert_eq!(PrefixPlan::from_tensor(&depths, 2).unwrap_err().got, "-1");
            let depths = Tensor::<2, Int>::from_data([[0, 1], [2, 0]], &device);
            assert_eq!(PrefixPlan::from_tensor(&depths, 2), PrefixPlan::new(&[0, 1, 2, 0], 2));
        }
    }

    /// Row by row: `x = 2 x + i` for the stages that the row runs.
    fn one_by_one(x: &[f64], width: usize, depths: &[usize]) -> Vec<f64> {
        let row = |(x, depth): (&[f64], &usize)| -> Vec<f64> {
            x.iter().map(|x| (0..*depth).fold(*x, |x, stage| 2.0 * x + stage as f64)).collect()
        };
        x.chunks_exact(width).zip(depths).flat_map(row).collect()
    }

    #[test]
    fn every_row_runs_its_stages_and_no_other() {
        let cases: [&[usize]; 6] = [&[1, 3, 0, 1, 3, 2], &[0; 5], &[4; 3], &[0], &[4], &[2, 1, 0]];
        for device in devices() {
            for depths in cases {
                let plan = PrefixPlan::new(depths, 4).unwrap();
                let values_in = ramp(depths.len() * 3, 1.0);
                let x = float64(&values_in, [depths.len(), 3], &device);
                let mut executed = 0;
                let y = prefix_execute(plan.gather(x), &plan, |stage, rows: Tensor<2>| {
                    assert_eq!(rows.dims()[0], plan.counts()[stage]);
                    executed += rows.dims()[0];
                    rows.mul_scalar(2.0).add_scalar(stage as f64)
                });
                assert_eq!(executed, plan.executed());
                assert_close(&values(plan.restore(y)), &one_by_one(&values_in, 3, depths), 1e-12);
            }
        }
    }

    #[test]
    fn no_rows_run_no_stage() {
        for device in devices() {
            let plan = PrefixPlan::new(&[], 3).unwrap();
            let y = prefix_execute(plan.gather(Tensor::<2>::zeros([0, 2], &device)), &plan, |_, _| {
                unreachable!("no row runs a stage")
            });
            assert_eq!(plan.restore(y).dims(), [0, 2]);
            let plan = PrefixPlan::new(&[0, 0], 2).unwrap();
            assert_eq!(plan.gather_first(Tensor::<2>::zeros([2, 5], &device), 0).dims(), [0, 5]);
        }
    }

    #[test]
    fn inputs_are_shared_where_results_are_added_up() {
        let (depths, x) = ([2, 0, 1, 2], ramp(8, 1.0));
        for device in devices() {
            let sums = |x: Tensor<2>| {
                let plan = PrefixPlan::new(&depths, 2).unwrap();
                let zeros = Tensor::<2>::zeros([4, 2], (&x.device(), x.dtype()));
                let sorted = prefix_execute((plan.gather(x), zeros), &plan, |stage, (x, sum)| {
                    let term = x.clone().powi_scalar(stage as i32 + 2);
                    (x, sum + term)
                });
                plan.restore(sorted)
            };
            let expected: Vec<f64> = (x.chunks_exact(2).zip(depths))
                .flat_map(|(row, depth)| {
                    row.iter().map(move |x| (0..depth).map(|i| x.powi(i as i32 + 2)).sum())
                })
                .collect();
            assert_close(&values(sums(float64(&x, [4, 2], &device))), &expected, 1e-12);
            check_gradients(&x, [4, 2], &device, sums);
        }
    }

    #[test]
    fn stages_at_once_are_those_one_by_one() {
        let cases: [&[usize]; 5] = [&[1, 3, 0, 1, 3, 2], &[0; 4], &[3; 4], &[2], &[0, 2, 0]];
        for (device, depths) in
            devices().into_iter().flat_map(|device| cases.map(|case| (device.clone(), case)))
        {
            let plan = PrefixPlan::new(depths, 3).unwrap();
            let (rows, x) = (depths.len(), ramp(depths.len() * 2, 1.0));
            let power = |x: Tensor<2>, stage: usize| x.powi_scalar(stage as i32 + 1);
            let start = |x: &Tensor<2>| x.clone().mul_scalar(0.5);
            let at_once = |x: Tensor<2>| {
                depth_execute(x.clone(), start(&x), &plan, |depth, x| {
                    (0..depth).map(|stage| power(x.clone(), stage)).reduce(|a, b| a + b).unwrap()
                })
            };
            let one_by_one = |x: Tensor<2>| {
                let state = (plan.gather(x.clone()), plan.gather(start(&x)));
                plan.restore(prefix_execute(state, &plan, |stage, (x, sum)| {
                    let term = power(x.clone(), stage);
                    (x, sum + term)
                }))
            };
            let input = float64(&x, [rows, 2], &device);
            assert_close(&values(at_once(input.clone())), &values(one_by_one(input)), 1e-12);
            check_gradients(&x, [rows, 2], &device, at_once);
            let seen: Vec<(usize, usize)> =
                plan.by_depth().map(|(depth, rows)| (depth, rows.len())).collect();
            assert_eq!(seen.iter().map(|(_, rows)| rows).sum::<usize>(), rows);
            assert_eq!(seen.iter().map(|(depth, rows)| depth * rows).sum::<usize>(), plan.executed());
        }
    }

    #[test]
    fn gradients_follow_the_rows() {
        let depths = [1, 3, 0, 1, 3, 2];
        for device in devices() {
            check_gradients(&ramp(12, 0.8), [6, 2], &device, |x| {
                let plan = PrefixPlan::new(&depths, 3).unwrap();
                let y =
                    prefix_execute(plan.gather(x), &plan, |_, rows: Tensor<2>| rows.tanh().mul_scalar(1.5));
                let weights = float64(&ramp(12, 1.0), [6, 2], &y.device());
                plan.restore(y) * weights
            });
        }
    }

    #[test]
    #[should_panic(expected = "stage 1 made 2 rows of 1")]
    fn stages_keep_their_rows() {
        let device = devices().remove(0);
        let plan = PrefixPlan::new(&[2, 1], 2).unwrap();
        prefix_execute(float32(&[1.0, 2.0], [2, 1], &device), &plan, |stage, rows| match stage {
            0 => rows,
            _ => rows.repeat_dim(0, 2),
        });
    }

    #[test]
    #[should_panic(expected = "`x` [3, 1] needs 2 rows")]
    fn other_rows_are_refused() {
        let device = devices().remove(0);
        PrefixPlan::new(&[2, 1], 2).unwrap().gather(float32(&[0.0; 3], [3, 1], &device));
    }
}
