//! Detectors, their loss and their configurations.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::{InputError, ModuleConfig};
use gatekit_fusion::two_views::{
    Backend, SingleViewConfig, SpectralConfig, SpectralKind, SpoofDetector, SslEncoder,
    StatisticsBackendConfig, Strategy, ViewDetectorConfig, fit_clip, normalize_utterances, spoof_loss,
};

use crate::{assert_close, devices, ramp, small, tensor, values, wave};

#[test]
fn configurations_that_make_no_detector_are_refused() {
    let device = Device::flex();
    let config = || ViewDetectorConfig::new(3, 5).with_d_model(4);
    let field = |config: ViewDetectorConfig| config.try_init(&device).unwrap_err().field;
    assert_eq!(field(config().with_heads(3)), "heads");
    assert_eq!(field(config().with_heads(0)), "heads");
    assert_eq!(field(config().with_dropout(1.0)), "dropout");
    assert_eq!(field(config().with_d_attention(0)), "d_attention");
    for weights in [[0.0, 1.0], [0.5, f64::NAN], [-1.0, 1.0]] {
        assert_eq!(field(config().with_class_weights(weights)), "class_weights");
    }
    assert_eq!(field(ViewDetectorConfig::new(0, 5)), "d_ssl");
    assert_eq!(field(ViewDetectorConfig::new(3, 0)), "d_spectral");
    assert_eq!(field(ViewDetectorConfig::new(3, 5).with_d_model(0)), "d_model");
    assert_eq!(SingleViewConfig::new(0).try_init(&device).unwrap_err().field, "d_view");
    assert_eq!(StatisticsBackendConfig::new(0).try_init(&device).unwrap_err().field, "d_model");
}

#[test]
fn configurations_have_their_published_names_and_defaults() {
    let config = ViewDetectorConfig::new(1024, 40).with_strategy(Strategy::Mutual);
    let published = serde_json::json!({
        "d_ssl": 1024, "d_spectral": 40, "d_model": 128, "heads": 1, "strategy": "mutual", "dropout": 0.1,
        "d_attention": 128, "class_weights": [0.1, 0.9],
    });
    assert_eq!(serde_json::to_value(&config).unwrap(), published);
    let read: ViewDetectorConfig = serde_json::from_value(published).unwrap();
    assert_eq!(read.strategy, Strategy::Mutual);
    let published = serde_json::json!({
        "kind": "lfcc", "sample_rate": 16000, "hop": 160, "n_fft": 512, "filters": null, "coefficients": 40,
        "top_db": 80.0, "deltas": 0, "f_min": 31.25, "bins_per_octave": 12, "resample_points": 96,
    });
    assert_eq!(serde_json::to_value(SpectralConfig::new()).unwrap(), published);
    for (kind, filters) in [(SpectralKind::Lfcc, 70), (SpectralKind::Mfcc, 64), (SpectralKind::Cqcc, 96)] {
        let config = SpectralConfig::new().with_kind(kind).with_deltas(2);
        assert_eq!((config.num_filters(), config.features()), (filters, 120));
        assert_eq!(config.init(&Device::flex()).features(), 120);
    }
}

#[test]
fn the_loss_is_weighted_by_class() {
    for device in devices() {
        let logits = tensor(&[1.0, 0.0, 0.5, 2.0, -1.0, 1.0], [3, 2], &device);
        let labels = |labels: [i64; 3]| Tensor::<1, Int>::from_data(TensorData::from(labels), &device);
        let nll = |own: f64, other: f64| (own.exp() + other.exp()).ln() - own;
        let want = (0.1 * nll(1.0, 0.0) + 0.9 * nll(2.0, 0.5) + 0.1 * nll(-1.0, 1.0)) / 1.1;
        let got = spoof_loss(logits.clone(), labels([0, 1, 0]), [0.1, 0.9]).unwrap();
        assert_close(&values(got), &[want], 1e-6);
        // One class alone: its weight cancels.
        let alone = spoof_loss(logits.clone(), labels([0, 0, 0]), [0.1, 0.9]).unwrap();
        let want = (nll(1.0, 0.0) + nll(0.5, 2.0) + nll(-1.0, 1.0)) / 3.0;
        assert_close(&values(alone), &[want], 1e-6);
        let refused = |labels| spoof_loss(logits.clone(), labels, [0.1, 0.9]).unwrap_err().field;
        assert_eq!(refused(labels([0, 1, 2])), "labels");
        assert_eq!(refused(labels([0, -1, 1])), "labels");
        assert_eq!(refused(Tensor::from_data(TensorData::from([0i64, 1]), &device)), "labels");
    }
}

#[test]
fn training_lowers_the_loss_of_every_strategy() {
    for device in devices() {
        for strategy in Strategy::ALL {
            let device = device.clone().autodiff();
            device.seed(5);
            let config = ViewDetectorConfig::new(3, 4)
                .with_d_model(8)
                .with_d_attention(4)
                .with_heads(2)
                .with_strategy(strategy);
            let mut detector = config.init(&device);
            let mut optimizer = AdamConfig::new().init();
            let (ssl, spectral) = (ramp([6, 5, 3], 1.0, &device), ramp([6, 9, 4], 1.0, &device));
            let labels = Tensor::<1, Int>::from_data(TensorData::from([0i64, 1, 0, 0, 1, 0]), &device);
            let mut losses = Vec::new();
            for _ in 0..60 {
                let output = detector.forward(ssl.clone(), spectral.clone()).unwrap();
                let loss = detector.loss(&output, labels.clone()).unwrap();
                losses.push(values(loss.clone())[0]);
                let gradients = GradientsParams::from_grads(loss.backward(), &detector);
                detector = optimizer.step(0.02, detector, gradients);
            }
            assert!(losses[59] < 0.5 * losses[0], "{strategy:?}: {} to {}", losses[0], losses[59]);
        }
    }
}

/// Means of pieces of ten samples, and of their squares.
#[derive(Module, Debug)]
struct Pieces {
    scale: Linear,
}

impl SslEncoder for Pieces {
    fn d_ssl(&self) -> usize {
        2
    }

    fn forward(&self, wave: Tensor<2>) -> Result<Tensor<3>, InputError> {
        let [batch, length] = wave.dims();
        if length < 10 {
            return Err(InputError::new("wave", length, "at least 10 samples"));
        }
        let pieces = wave.narrow(1, 0, length / 10 * 10).reshape([batch, length / 10, 10]);
        let both = Tensor::cat(vec![pieces.clone().mean_dim(2), pieces.square().mean_dim(2)], 2);
        Ok(self.scale.forward(both))
    }
}

/// A back end of one's own: the mean.
#[derive(Module, Debug)]
struct Mean {
    classifier: Linear,
}

impl Backend for Mean {
    fn forward(&self, frames: Tensor<3>) -> Tensor<2> {
        self.classifier.forward(frames.mean_dim(1).squeeze_dim::<2>(1))
    }
}

#[test]
fn the_whole_detector_is_its_parts() {
    for device in devices() {
        let encoder = Pieces { scale: LinearConfig::new(2, 2).init(&device) };
        let front_end = small(SpectralKind::Lfcc).with_hop(20).init(&device);
        let config = ViewDetectorConfig::new(2, 5).with_d_model(4).with_strategy(Strategy::Gate);
        let backend = Mean { classifier: LinearConfig::new(4, 2).init(&device) };
        let detector = config.with_backend(backend, &device).unwrap();
        let mut whole = SpoofDetector::new(encoder, front_end, detector).unwrap();
        let samples = tensor(&wave(200), [1, 200], &device);
        let output = whole.forward(samples.clone()).unwrap();
        let ssl = whole.encoder.forward(samples.clone()).unwrap();
        let cepstra = whole.front_end.forward(samples.clone()).unwrap();
        let parts = whole.detector.forward(ssl.clone(), normalize_utterances(cepstra.clone())).unwrap();
        assert_close(&values(output.logits.clone()), &values(parts.logits.clone()), 0.0);
        let logits = values(parts.logits.clone());
        assert_close(&values(parts.score()), &[logits[1] - logits[0]], 1e-6);
        assert_eq!(output.gate.clone().unwrap().dims(), [1, 20, 4]);
        whole.normalize = false;
        let raw = whole.detector.forward(ssl, cepstra).unwrap().logits;
        assert_close(&values(whole.forward(samples).unwrap().logits), &values(raw), 0.0);
        // What one of the front ends refuses, the detector does.
        assert_eq!(whole.forward(Tensor::zeros([1, 9], &device)).unwrap_err().field, "wave");
        // Both halves of the module are trained and saved; the front end has nothing to train.
        assert_eq!(whole.num_params(), 6 + (2 + 5) * 4 + 8 + 4 * 4 + (8 * 4 + 4) + (4 * 2 + 2));
    }
}

#[test]
fn a_detector_needs_views_of_its_widths() {
    let device = Device::flex();
    let parts = |d_ssl, d_spectral| {
        let encoder = Pieces { scale: LinearConfig::new(2, 2).init(&device) };
        let detector = ViewDetectorConfig::new(d_ssl, d_spectral).with_d_model(4).init(&device);
        SpoofDetector::new(encoder, small(SpectralKind::Lfcc).init(&device), detector)
    };
    assert_eq!(parts(3, 5).unwrap_err().field, "d_ssl");
    assert_eq!(parts(2, 6).unwrap_err().field, "d_spectral");
    assert!(parts(2, 5).is_ok());
}

#[test]
fn clips_are_cut_or_repeated() {
    assert_eq!(fit_clip(&[1.0, 2.0, 3.0], 2).unwrap(), [1.0, 2.0]);
    assert_eq!(fit_clip(&[1.0, 2.0, 3.0], 7).unwrap(), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0]);
    assert_eq!(fit_clip(&[], 7).unwrap_err().field, "samples");
}
