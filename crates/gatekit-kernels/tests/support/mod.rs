//! What the tests of the elementwise operations share: numbers, tensors, comparisons, differences.
// Each test file uses its part.
#![allow(dead_code)]

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Reproducible numbers in `[-1, 1)`.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Exact in float32, so that both precisions compute from the same numbers.
        f64::from(((self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0) as f32)
    }

    pub fn many(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// The devices with fused loops.
pub fn devices() -> Vec<Device> {
    vec![
        #[cfg(feature = "ndarray")]
        Device::ndarray(),
        #[cfg(feature = "flex")]
        Device::flex(),
    ]
}

pub fn tensor<const D: usize>(values: &[f64], dims: [usize; D], device: &Device, dtype: DType) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), (device, dtype))
}

pub fn values<const D: usize>(x: &Tensor<D>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}

/// The values of a gradient that must exist.
pub fn gradient<const D: usize>(x: &Tensor<D>, gradients: &burn::tensor::Gradients) -> Vec<f64> {
    values(&x.grad(gradients).expect("the result depends on the argument"))
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Every value within `tolerance` of its own size and of the array's typical size.
#[track_caller]
pub fn close(name: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}: number of values");
    let mut sizes: Vec<f64> = want.iter().map(|x| x.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let typical = sizes.get(sizes.len() / 2).copied().unwrap_or(0.0).max(1.0);
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        assert!(error <= tolerance * (want.abs() + typical), "{name}[{index}]: {got}, not {want}");
    }
}

/// Central differences of `loss` in every number of `inputs`.
pub fn differences(inputs: &[Vec<f64>], loss: impl Fn(&[Vec<f64>]) -> f64) -> Vec<Vec<f64>> {
    let mut moved = inputs.to_vec();
    let mut all = Vec::new();
    for input in 0..inputs.len() {
        let slopes = (0..inputs[input].len())
            .map(|place| {
                let middle = inputs[input][place];
                let step = 1e-5 * middle.abs().max(1.0);
                moved[input][place] = middle + step;
                let up = loss(&moved);
                moved[input][place] = middle - step;
                let down = loss(&moved);
                moved[input][place] = middle;
                (up - down) / (2.0 * step)
            })
            .collect();
        all.push(slopes);
    }
    all
}

/// `sigmoid(z)` without overflow.
pub fn sigmoid(z: f64) -> f64 {
    let e = (-z.abs()).exp();
    if z >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

/// The result of `run` on pools of one, two and four threads, which must be the same to the last bit, as must a second
/// run.
pub fn on_any_number_of_threads<T: PartialEq + Send>(run: impl Fn() -> T + Sync) -> T {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
        pool.install(&run)
    };
    let first = on(1);
    for threads in [1, 2, 4] {
        assert!(on(threads) == first, "{threads} threads give other results than one");
    }
    first
}
