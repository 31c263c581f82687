//! The contexts of the environments.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::linalg::Matrix;

/// One context vector an environment, trained; all 0 at first.
#[derive(Module, Debug)]
pub struct ContextTable {
    /// `[M, C]`.
    pub contexts: Param<Tensor<2>>,
}

impl ContextTable {
    /// For M environments, contexts of C numbers.
    pub fn new(environments: usize, context_size: usize, device: &Device) -> Self {
        Self { contexts: Initializer::Zeros.init([environments, context_size], device) }
    }

    /// Number of environments M.
    pub fn environments(&self) -> usize {
        self.contexts.dims()[0]
    }

    /// The contexts on the host, `[M, C]`.
    pub fn to_matrix(&self) -> Matrix {
        Matrix::of(&self.contexts.val())
    }

    /// An environment and those nearest to it in mean absolute distance of the contexts (of equally near ones the
    /// lower index first): `count` of them, at most M.
    ///
    /// # Panics
    ///
    /// When there is no such environment.
    pub fn nearest(&self, environment: usize, count: usize) -> Vec<usize> {
        let contexts = self.to_matrix();
        assert!(
            environment < contexts.rows(),
            "ContextTable: environment {environment} of {}",
            contexts.rows()
        );
        let distance = |other: usize| -> f64 {
            let pairs = contexts.row(environment).iter().zip(contexts.row(other));
            pairs.map(|(x, y)| (x - y).abs()).sum()
        };
        let mut others: Vec<(f64, usize)> = (0..contexts.rows())
            .filter(|other| *other != environment)
            .map(|other| (distance(other), other))
            .collect();
        others.sort_by(|a, b| a.0.total_cmp(&b.0));
        let nearest = others.into_iter().map(|(_, other)| other);
        std::iter::once(environment).chain(nearest).take(count.max(1)).collect()
    }
}

/// The rows of some environments.
pub(super) fn rows<const D: usize>(tensor: Tensor<D>, environments: &[usize]) -> Tensor<D> {
    let indices: Vec<i64> = environments.iter().map(|index| *index as i64).collect();
    let indices =
        Tensor::<1, Int>::from_data(TensorData::new(indices, [environments.len()]), &tensor.device());
    tensor.select(0, indices)
}
