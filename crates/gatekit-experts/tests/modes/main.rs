//! MoDES beyond the golden cases: equalities, edges, and what is refused.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

mod calibration;
mod layer;
mod search;
mod skipping;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::moe::{MoeLayer, MoeLayerConfig};
use gatekit_core::router::{Assignment, Routing};
use gatekit_core::{InputError, ModuleConfig};
use gatekit_experts::modes::{Modality, SkipStats, SkippableModel, SkippingMoeLayer, TokenModalities};

#[allow(deprecated)] // NdArray is deprecated upstream and supported here.
fn devices() -> [Device; 2] {
    [Device::ndarray(), Device::flex()]
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn tensor<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Numbers between -1 and 1 without a pattern that a layer could hide in.
fn ramp(count: usize, phase: f64) -> Vec<f64> {
    (0..count).map(|i| (1.7 * i as f64 + phase).sin()).collect()
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= tolerance * expected.abs().max(1.0), "value {index}: {got}, expected {expected}");
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, InputError>, needles: &[&str]) {
    let text = result.expect_err("refused").to_string();
    for needle in needles {
        assert!(text.contains(needle), "{text:?} does not name {needle:?}");
    }
}

/// A routing of given experts and weights, `[N, K]`.
fn routing(experts: &[usize], weights: &[f64], k: usize, num_experts: usize, device: &Device) -> Routing {
    let assignment = Assignment::new(experts.to_vec(), k, num_experts).unwrap();
    let shape = [weights.len() / k, k];
    let indices: Vec<i64> = experts.iter().map(|expert| *expert as i64).collect();
    let indices = Tensor::from_data(TensorData::new(indices, shape), device);
    let weights = tensor(weights, shape, device);
    Routing { logits: None, scores: None, indices, weights, load: None, assignment }
}

/// A layer of 6 experts, 3 a token, width 8, that are not nearly linear.
fn moe_layer(shared: usize, phase: f64, device: &Device) -> MoeLayer {
    let config = MoeLayerConfig::new(8, 5)
        .with_num_experts(6)
        .with_num_experts_per_tok(3)
        .with_shared_intermediate_size(shared);
    let mut layer = config.init(device);
    let filled = |param: Param<Tensor<3>>, phase: f64| {
        param.map(|value| tensor(&ramp(value.shape().num_elements(), phase), value.dims(), &value.device()))
    };
    layer.experts.gate_up_proj = filled(layer.experts.gate_up_proj, phase);
    layer.experts.down_proj = filled(layer.experts.down_proj, phase + 1.0);
    if let gatekit_core::router::Router::Learned(router) = &mut layer.gate {
        let weight = router.weight.clone();
        router.weight = weight.map(|value| tensor(&ramp(48, phase + 2.0), value.dims(), &value.device()));
    }
    layer
}

/// Residual layers over token features; the answers are the last tokens of every row.
#[derive(Module, Debug)]
struct Toy {
    layers: Vec<SkippingMoeLayer>,
}

impl Toy {
    fn new(layers: usize, device: &Device) -> Self {
        let layer = |index| SkippingMoeLayer::new(moe_layer(4, 0.37 * index as f64, device), device);
        Self { layers: (0..layers).map(layer).collect() }
    }
}

struct Batch {
    /// `[batch, time, 8]`.
    x: Tensor<3>,
    modalities: TokenModalities,
    /// Tokens at the end of every row that are answers.
    answers: usize,
}

impl Batch {
    /// Two rows: a special token, three patches, three words.
    fn new(phase: f64, answers: usize, device: &Device) -> Self {
        let x = tensor(&ramp(2 * 7 * 8, phase), [2, 7, 8], device);
        let row = [2, 1, 1, 1, 0, 0, 0];
        Self { x, modalities: TokenModalities::from_codes(&[row, row].concat()).unwrap(), answers }
    }
}

impl SkippableModel for Toy {
    type Batch = Batch;

    fn moe_layers(&self) -> Vec<&SkippingMoeLayer> {
        self.layers.iter().collect()
    }

    fn moe_layers_mut(&mut self) -> Vec<&mut SkippingMoeLayer> {
        self.layers.iter_mut().collect()
    }

    fn answer_logits(&self, batch: &Batch) -> Result<(Tensor<2>, SkipStats), InputError> {
        let [rows, time, width] = batch.x.dims();
        let (mut x, mut counts) = (batch.x.clone(), Vec::new());
        for layer in &self.layers {
            let forward = layer.forward_with(x.clone(), &batch.modalities, &Default::default())?;
            // Attention stands in for by its mean: what patches become reaches the words.
            x = x.clone() + forward.y.mul_scalar(0.02) + x.mean_dim(1);
            counts.push(forward.decision.counts());
        }
        let logits = match batch.answers {
            0 => Tensor::zeros([0, width], &x.device()),
            answers => x.narrow(1, time - answers, answers).reshape([rows * answers, width]),
        };
        Ok((logits, SkipStats::new(counts)))
    }
}

#[test]
fn codes_are_modalities() {
    for (code, modality) in Modality::ALL.into_iter().enumerate() {
        assert_eq!((modality.code(), Modality::from_code(code as i64).unwrap()), (code, modality));
    }
    assert_refused(TokenModalities::from_codes(&[0, 1, 3]), &["modality", "3 at token 2", "vision"]);
    assert_refused(TokenModalities::from_codes(&[-1]), &["-1 at token 0"]);
    assert_refused(TokenModalities::text(3).with_mask(vec![true; 2]), &["mask", "2 entries", "3"]);
    for device in devices() {
        let codes = Tensor::<2, burn::tensor::Int>::from_data([[0, 1], [2, 0]], &device);
        let modalities = TokenModalities::from_tensor(&codes).unwrap();
        assert_eq!(modalities, TokenModalities::from_codes(&[0, 1, 2, 0]).unwrap());
        let mask = Tensor::<2, burn::tensor::Bool>::from_data([[true, true], [true, false]], &device);
        let masked = modalities.with_mask_tensor(&mask).unwrap();
        assert!(masked.is_padding(3) && !masked.is_padding(2));
    }
}
