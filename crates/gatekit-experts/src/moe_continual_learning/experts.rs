//! Linear experts that move to the nearest exact fit.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::checkpoint::named_parameters;
use gatekit_core::linalg::{Factorization, Matrix, min_norm_step};

/// M linear experts `y = x . w_m`, of which one at a time moves to the nearest exact fit.
///
/// `w <- w + X^T (X X^T)^-1 (y - X w)`, where gradient descent from w ends. X may be ill-conditioned, so
/// float32 data is solved by QR, see [`min_norm_step`]. Evron et al. (arXiv 2205.09588); Li et al.
/// (arXiv 2406.16437), eq. of the expert's update.
#[derive(Module, Debug)]
pub struct MinNormExperts {
    /// Weights `[M, d]`, 0 at first.
    pub experts: Param<Tensor<2>>,
}

impl MinNormExperts {
    /// M experts on d features, all 0.
    pub fn new(num_experts: usize, input_dim: usize, device: &Device) -> Self {
        Self { experts: Initializer::Zeros.init([num_experts, input_dim], device).set_require_grad(false) }
    }

    /// The weights on the host, `[M, d]`.
    pub fn weights(&self) -> Matrix {
        Matrix::of(&self.experts.val())
    }

    /// Moves one expert to fit `x` `[s, d]`, `y` `[s]`; says how far it moved, `||w_new - w_old||`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for `s >= d`, rows of `x` that depend on one another, values that are not finite, and an
    /// expert that is none. The experts are then as before.
    ///
    /// # Panics
    ///
    /// When the sizes of `x` and `y` do not fit.
    pub fn fit(&mut self, expert: usize, x: &Tensor<2>, y: &Tensor<1>) -> Result<f64, InputError> {
        let [experts, dims] = self.experts.dims();
        if expert >= experts {
            return Err(InputError::new("expert", expert, format!("0 .. {experts}")));
        }
        let weights = self.experts.val();
        let row: Vec<f64> =
            weights.clone().slice([expert..expert + 1, 0..dims]).to_data().iter::<f64>().collect();
        let y: Vec<f64> = y.to_data().iter::<f64>().collect();
        let factorization = Factorization::of(x.dtype());
        let moved = min_norm_step(&Matrix::of(x), &y, &row, factorization, precision(x.dtype()))?;
        let drift = moved.iter().zip(&row).map(|(new, old)| (new - old).powi(2)).sum::<f64>().sqrt();
        let place = (&weights.device(), weights.dtype());
        let moved = Tensor::<2>::from_data(TensorData::new(moved, [1, dims]), place);
        self.experts = self
            .experts
            .clone()
            .map(|weights| weights.detach().slice_assign([expert..expert + 1, 0..dims], moved))
            .set_require_grad(false);
        Ok(drift)
    }
}

/// Distance from 1 to the next number.
fn precision(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::F16 => 9.8e-4,
        DType::BF16 => 7.8e-3,
        _ => f64::from(f32::EPSILON),
    }
}

/// `||theta_after - theta_before||` over all parameters: the drift of an expert that is a whole network.
///
/// # Panics
///
/// When the two are not of one architecture.
pub fn parameter_drift<M: Module>(before: &M, after: &M) -> f64 {
    let (before, after) = (named_parameters(before), named_parameters(after));
    assert!(before.keys().eq(after.keys()), "parameter_drift: the modules have other parameters");
    let squares = before.iter().map(|(name, old)| {
        let new = &after[name];
        assert!(old.shape() == new.shape(), "parameter_drift: `{name}` has other shapes");
        old.iter::<f64>().zip(new.iter::<f64>()).map(|(old, new)| (new - old).powi(2)).sum::<f64>()
    });
    squares.sum::<f64>().sqrt()
}
