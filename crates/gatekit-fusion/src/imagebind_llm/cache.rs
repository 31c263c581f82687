//! Training-free retrieval: a query moves towards the images it resembles.

use burn::config::Config;
use burn::tensor::{Device, Tensor, TensorData, activation::softmax};
use gatekit_core::{ConfigError, InputError, widen};

/// How far the norm of a cached vector may be from 1.
const UNIT_TOLERANCE: f64 = 1e-3;

/// Unit vectors in which the nearest can be searched: in memory ([`FlatIndex`]), or with any library for it.
pub trait VectorIndex {
    /// Vectors N.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Channels M of a vector.
    fn dim(&self) -> usize;

    /// The rows of the `count` vectors with the largest inner products with each query, best first, of equals the
    /// lower row first. `queries` `[B, M]`, finite; `count` is at most N. Returns B lists.
    fn search(&self, queries: Tensor<2>, count: usize) -> Vec<Vec<usize>>;

    /// The vectors of these rows, `[rows, M]`, on `device`.
    fn vectors(&self, rows: &[usize], device: &Device) -> Tensor<2>;
}

/// All vectors in one tensor, searched by one matrix product.
#[derive(Debug, Clone)]
pub struct FlatIndex {
    vectors: Tensor<2>,
}

impl FlatIndex {
    /// Of unit vectors `[N, M]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the first row whose norm differs from 1 by more than 1e-3.
    pub fn new(vectors: Tensor<2>) -> Result<Self, InputError> {
        let vectors = vectors.without_autodiff();
        let norms = row_norms(&vectors);
        match norms.iter().position(|norm| (norm - 1.0).abs() > UNIT_TOLERANCE || norm.is_nan()) {
            None => Ok(Self { vectors }),
            Some(row) => {
                let got = format!("norm {} in row {row}", norms[row]);
                Err(InputError::new("cache", got, "unit vectors"))
            }
        }
    }
}

impl VectorIndex for FlatIndex {
    fn len(&self) -> usize {
        self.vectors.dims()[0]
    }

    fn dim(&self) -> usize {
        self.vectors.dims()[1]
    }

    fn search(&self, queries: Tensor<2>, count: usize) -> Vec<Vec<usize>> {
        let queries = widen(queries.without_autodiff()).to_device(&self.vectors.device());
        let vectors = self.vectors.clone().cast(queries.dtype());
        let scores: Vec<f64> = queries.matmul(vectors.transpose()).into_data().iter::<f64>().collect();
        let nearest = |scores: &[f64]| {
            let best_first = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
            let mut rows: Vec<usize> = (0..scores.len()).collect();
            if (1..rows.len()).contains(&count) {
                rows.select_nth_unstable_by(count - 1, best_first);
            }
            rows.truncate(count);
            rows.sort_unstable_by(best_first);
            rows
        };
        scores.chunks(self.len().max(1)).map(nearest).collect()
    }

    fn vectors(&self, rows: &[usize], device: &Device) -> Tensor<2> {
        let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let rows = Tensor::from_data(TensorData::new(rows.clone(), [rows.len()]), &self.vectors.device());
        self.vectors.clone().select(0, rows).to_device(&device.clone().without_autodiff())
    }
}

/// Configuration of [`VisualCache`].
#[derive(Config, Debug)]
pub struct VisualCacheConfig {
    /// Neighbours K that are blended. Default 10.
    #[config(default = 10)]
    pub cache_size: usize,
    /// Inverse temperature of their softmax, above 0. Default 20.
    #[config(default = 20.0)]
    pub cache_t: f64,
    /// Share of the retrieved vector, 0 to 1. Default 0.5.
    #[config(default = 0.5)]
    pub cache_weight: f64,
}

impl VisualCacheConfig {
    /// A cache over `index`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for no neighbours or more than the index has, a temperature that is not above 0, a share outside
    /// 0 to 1.
    pub fn try_init<I: VectorIndex>(&self, index: I) -> Result<VisualCache<I>, ConfigError> {
        if self.cache_size == 0 || self.cache_size > index.len() {
            let need = format!("1 to {}, the vectors of the cache", index.len());
            return Err(ConfigError::new("cache_size", self.cache_size, need));
        }
        if !(self.cache_t > 0.0 && self.cache_t.is_finite()) {
            return Err(ConfigError::new("cache_t", self.cache_t, "a finite number above 0"));
        }
        if !(0.0..=1.0).contains(&self.cache_weight) {
            return Err(ConfigError::new("cache_weight", self.cache_weight, "0 to 1"));
        }
        Ok(VisualCache { index, config: self.clone() })
    }
}

/// Draws an embedding of any modality towards the image embeddings that resemble it, without training.
///
/// `s = x C^T`, the K largest; `p = softmax(cache_t s)`, `r = sum_k p_k C_k`, `r <- r / |r|`;
/// `x' = (1 - cache_weight) x + cache_weight r`, `x' <- x' / |x'|`. Each sample retrieves for itself. Gradients flow
/// through the chosen entries, not through the choice. Paper, section 3.4.
#[derive(Debug, Clone)]
pub struct VisualCache<I> {
    index: I,
    config: VisualCacheConfig,
}

/// What [`VisualCache::forward`] found.
#[derive(Debug, Clone)]
pub struct Retrieval {
    /// `r`, unit vectors `[B, M]`.
    pub retrieved: Tensor<2>,
    /// `x'`, unit vectors `[B, M]`.
    pub enhanced: Tensor<2>,
    /// The rows blended for each sample, best first: B lists of K.
    pub indices: Vec<Vec<usize>>,
}

impl<I: VectorIndex> VisualCache<I> {
    /// The index that is searched.
    pub fn index(&self) -> &I {
        &self.index
    }

    /// Embeddings (or their [mix](super::ModalityMix)) `[B, M]` to what was retrieved and blended.
    ///
    /// # Errors
    ///
    /// [`InputError`] for another width than the cache's, an embedding that is zero or not finite, and one that cancels
    /// with what was retrieved for it: there is no direction then.
    pub fn forward(&self, x: Tensor<2>) -> Result<Retrieval, InputError> {
        let ([batch, width], dim, count) = (x.dims(), self.index.dim(), self.config.cache_size);
        if width != dim || batch == 0 {
            let got = format!("shape {:?}", x.dims());
            return Err(InputError::new("mixed", got, format!("[batch, {dim}] with at least one row")));
        }
        let dtype = x.dtype();
        let x = widen(x);
        check_directions("mixed", &x)?;
        let indices = self.index.search(x.clone().without_autodiff(), count);
        let vectors = self.index.vectors(&indices.concat(), &x.device()).cast(x.dtype());
        let vectors = vectors.reshape([batch, count, dim]);
        let similarities = (vectors.clone() * x.clone().unsqueeze_dim::<3>(1)).sum_dim(2);
        let shares = softmax(similarities.mul_scalar(self.config.cache_t), 1);
        let retrieved = normalised("retrieved", (vectors * shares).sum_dim(1).squeeze_dim(1))?;
        let share = self.config.cache_weight;
        let enhanced =
            normalised("enhanced", x.mul_scalar(1.0 - share) + retrieved.clone().mul_scalar(share))?;
        Ok(Retrieval { retrieved: retrieved.cast(dtype), enhanced: enhanced.cast(dtype), indices })
    }
}

fn normalised(name: &str, x: Tensor<2>) -> Result<Tensor<2>, InputError> {
    check_directions(name, &x)?;
    let norm = x.clone().square().sum_dim(1).sqrt();
    Ok(x / norm)
}

/// Refuses rows without a direction: zero or not finite.
fn check_directions(name: &str, x: &Tensor<2>) -> Result<(), InputError> {
    let norms = row_norms(&x.clone().without_autodiff());
    match norms.iter().position(|norm| !(*norm > 0.0 && norm.is_finite())) {
        None => Ok(()),
        Some(row) => {
            let got = format!("norm {} in row {row}", norms[row]);
            Err(InputError::new(name, got, "a vector with a direction"))
        }
    }
}

fn row_norms(x: &Tensor<2>) -> Vec<f64> {
    let norms = widen(x.clone()).square().sum_dim(1).sqrt();
    norms.into_data().iter::<f64>().collect()
}
