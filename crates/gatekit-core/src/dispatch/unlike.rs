//! Experts that are not alike: the plan of stacked experts over modules of different kinds.

use burn::tensor::{Bool, Device, Int, Tensor};

use super::DispatchPlan;
use crate::common::indices;

/// What can be cut into rows: tensors along their first axis, and tuples of such.
pub trait Rows {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// The rows of these positions, in this order. There is at least one.
    fn select_rows(&self, rows: &[usize]) -> Self;

    /// Where they are.
    fn device(&self) -> Device;
}

macro_rules! tensor_rows {
    ($($kind:ty),*) => {$(
        impl<const D: usize> Rows for $kind {
            fn rows(&self) -> usize {
                self.dims()[0]
            }

            fn select_rows(&self, rows: &[usize]) -> Self {
                self.clone().select(0, indices(rows.to_vec(), &self.device()))
            }

            fn device(&self) -> Device {
                Tensor::device(self)
            }
        }
    )*};
}

tensor_rows!(Tensor<D>, Tensor<D, Int>, Tensor<D, Bool>);

/// Both with the same number of rows.
impl<A: Rows, B: Rows> Rows for (A, B) {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn select_rows(&self, rows: &[usize]) -> Self {
        (self.0.select_rows(rows), self.1.select_rows(rows))
    }

    fn device(&self) -> Device {
        self.0.device()
    }
}

/// One of several modules behind one router, whatever it is inside.
///
/// `X` is what it reads: `Tensor<2>` for tokens, a tuple of states and mask for sequences. Experts that
/// are alike compute faster stacked, through [`grouped_matmul`](super::grouped_matmul).
pub trait Expert<X> {
    /// Channels of the output, the same for all experts of a router.
    fn d_output(&self) -> usize;

    /// The outputs `[rows, d_output]` of some rows, at least one.
    fn forward(&self, rows: X) -> Tensor<2>;
}

impl<X, E: Expert<X> + ?Sized> Expert<X> for &E {
    fn d_output(&self) -> usize {
        (**self).d_output()
    }

    fn forward(&self, rows: X) -> Tensor<2> {
        (**self).forward(rows)
    }
}

impl<X, E: Expert<X> + ?Sized> Expert<X> for Box<E> {
    fn d_output(&self) -> usize {
        (**self).d_output()
    }

    fn forward(&self, rows: X) -> Tensor<2> {
        (**self).forward(rows)
    }
}

/// Runs every expert on the rows of `x` that go to it; one without rows is not run.
///
/// The outputs `[M, d_output]` are sorted as the plan is, for
/// [`scatter_combine`](DispatchPlan::scatter_combine).
///
/// # Panics
///
/// When `x` does not have the plan's rows, the experts are not as many as the plan's or their outputs
/// not equally wide, or one returns another number of rows than it got.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use gatekit_core::dispatch::{DispatchPlan, Expert, unlike_experts};
/// use gatekit_core::router::Assignment;
///
/// struct Double;
/// struct Negate;
/// impl Expert<Tensor<2>> for Double {
///     fn d_output(&self) -> usize { 1 }
///     fn forward(&self, x: Tensor<2>) -> Tensor<2> { x * 2.0 }
/// }
/// impl Expert<Tensor<2>> for Negate {
///     fn d_output(&self) -> usize { 1 }
///     fn forward(&self, x: Tensor<2>) -> Tensor<2> { -x }
/// }
///
/// let experts: Vec<Box<dyn Expert<Tensor<2>>>> = vec![Box::new(Double), Box::new(Negate)];
/// let plan = DispatchPlan::new(&Assignment::new(vec![1, 0, 1], 1, 2).unwrap());
/// let x = Tensor::<2>::from_data([[1.0], [2.0], [3.0]], &Device::flex());
/// let y = plan.scatter_combine(unlike_experts(&experts, &x, &plan), Tensor::ones([3, 1], &Device::flex()));
/// assert_eq!(y.into_data().to_vec::<f32>().unwrap(), [-1.0, 4.0, -3.0]);
/// # }
/// ```
pub fn unlike_experts<X: Rows, E: Expert<X>>(experts: &[E], x: &X, plan: &DispatchPlan) -> Tensor<2> {
    let (rows, offsets) = (x.rows(), plan.offsets());
    assert!(rows == plan.tokens(), "unlike_experts: `x` has {rows} rows, the plan {}", plan.tokens());
    assert!(
        experts.len() + 1 == offsets.len() && !experts.is_empty(),
        "unlike_experts: {} `experts`, the plan has {}",
        experts.len(),
        offsets.len() - 1
    );
    let width = experts[0].d_output();
    let mut outputs = Vec::new();
    for (number, (expert, range)) in experts.iter().zip(offsets.windows(2)).enumerate() {
        assert!(
            expert.d_output() == width,
            "unlike_experts: expert {number} gives {} channels, expert 0 {width}",
            expert.d_output()
        );
        let rows = &plan.rows()[range[0]..range[1]];
        if !rows.is_empty() {
            let output = expert.forward(x.select_rows(rows));
            assert!(
                output.dims() == [rows.len(), width],
                "unlike_experts: expert {number} returned {:?}, need [{}, {width}]",
                output.dims(),
                rows.len()
            );
            outputs.push(output);
        }
    }
    match outputs.len() {
        0 => Tensor::zeros([0, width], &x.device()),
        _ => Tensor::cat(outputs, 0),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use burn::nn::{Linear, LinearConfig};

    use super::*;
    use crate::router::Assignment;
    use crate::test_util::{assert_close, devices, float32, ramp, values};

    struct Projection(Linear);

    impl Expert<Tensor<2>> for Projection {
        fn d_output(&self) -> usize {
            4
        }

        fn forward(&self, rows: Tensor<2>) -> Tensor<2> {
            self.0.forward(rows)
        }
    }

    /// Repeats its first channel, and remembers how many rows it got.
    #[derive(Default)]
    struct First(RefCell<Vec<usize>>);

    impl Expert<Tensor<2>> for First {
        fn d_output(&self) -> usize {
            4
        }

        fn forward(&self, rows: Tensor<2>) -> Tensor<2> {
            let [count, _] = rows.dims();
            self.0.borrow_mut().push(count);
            rows.narrow(1, 0, 1).expand([count, 4])
        }
    }

    #[test]
    fn every_row_meets_its_experts_alone() {
        for device in devices() {
            let (projection, first) = (Projection(LinearConfig::new(3, 4).init(&device)), First::default());
            let chosen = [0, 1, 1, 0, 2, 1, 0, 0, 1, 2];
            let assignment = Assignment::new(chosen.to_vec(), 2, 3).unwrap().retain(|slot| slot != 3);
            let plan = DispatchPlan::new(&assignment);
            let x = float32(&ramp(15, 1.0), [5, 3], &device);
            let weights = ramp(10, 1.0);
            let experts: [&dyn Expert<Tensor<2>>; 3] = [&projection, &first, &first];
            let sorted = unlike_experts(&experts, &x, &plan);
            let y = plan.scatter_combine(sorted, float32(&weights, [5, 2], &device));
            // Every expert on every row, then the chosen ones picked out.
            let dense = [values(projection.forward(x.clone())), values(First::default().forward(x.clone()))];
            let mut want = vec![0.0; 20];
            for (slot, &expert) in chosen.iter().enumerate().filter(|(slot, _)| *slot != 3) {
                for channel in 0..4 {
                    let at = slot / 2 * 4 + channel;
                    want[at] += weights[slot] * dense[expert.min(1)][at];
                }
            }
            assert_close(&values(y), &want, 1e-5);
            assert_eq!(*first.0.borrow(), [4, 2], "rows of experts 1 and 2");
        }
    }

    #[test]
    fn experts_without_rows_are_not_run() {
        for device in devices() {
            let (one, other) = (First::default(), First::default());
            let plan = DispatchPlan::new(&Assignment::new(vec![1; 3], 1, 2).unwrap());
            let x = float32(&ramp(9, 1.0), [3, 3], &device);
            assert_eq!(unlike_experts(&[&one, &other], &x, &plan).dims(), [3, 4]);
            assert_eq!((one.0.borrow().len(), other.0.borrow().as_slice()), (0, &[3][..]));
            let none = DispatchPlan::new(&Assignment::new(vec![], 1, 2).unwrap());
            let sorted = unlike_experts(&[&one, &other], &Tensor::zeros([0, 3], &device), &none);
            assert_eq!(none.scatter_combine(sorted, Tensor::zeros([0, 1], &device)).dims(), [0, 4]);
        }
    }

    #[test]
    fn tuples_are_cut_together() {
        for device in devices() {
            let states = float32(&ramp(12, 1.0), [3, 2, 2], &device);
            let mask =
                Tensor::<2>::from_data([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], &device).greater_elem(0.5);
            let both = (states.clone(), mask);
            let (some, kept) = both.select_rows(&[2, 0]);
            assert_eq!((both.rows(), some.dims(), kept.dims()), (3, [2, 2, 2], [2, 2]));
            assert_eq!(kept.into_data().iter::<bool>().collect::<Vec<_>>(), [false, true, true, false]);
            assert_eq!(values(some.narrow(0, 0, 1)), values(states.narrow(0, 2, 1)));
        }
    }

    #[test]
    #[should_panic(expected = "unlike_experts: 1 `experts`, the plan has 2")]
    fn a_missing_expert_panics() {
        let device = devices().remove(0);
        let plan = DispatchPlan::new(&Assignment::new(vec![1], 1, 2).unwrap());
        unlike_experts(&[First::default()], &Tensor::<2>::zeros([1, 3], &device), &plan);
    }
}
