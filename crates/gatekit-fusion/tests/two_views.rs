//! Two views: what the golden cases do not ask.
#![cfg(all(feature = "ndarray", feature = "flex"))]
#![allow(missing_docs)]

use std::f64::consts::{PI, TAU};

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::{InputError, ModuleConfig};
use gatekit_fusion::two_views::fusion::Fusion;
use gatekit_fusion::two_views::spectral::deltas;
use gatekit_fusion::two_views::{
    Backend, EqualErrorRate, SingleViewConfig, SpectralConfig, SpectralFrontEnd, SpectralKind, SpoofDetector,
    SslEncoder, StatisticsBackendConfig, Strategy, ViewDetectorConfig, ViewFusionConfig, equal_error_rate,
    fit_clip, normalize_utterances, spoof_loss,
};

#[allow(deprecated)] // NdArray is one of the devices that are tested.
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn tensor<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Numbers without a pattern that a layer could hide in.
fn ramp<const D: usize>(shape: [usize; D], scale: f64, device: &Device) -> Tensor<D> {
    let count = shape.iter().product();
    let numbers: Vec<f64> = (0..count).map(|i| scale * (1.7 * i as f64 + 0.3).sin()).collect();
    tensor(&numbers, shape, device)
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "number of values");
    for (place, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        assert!(error <= tolerance * want.abs().max(1.0), "value {place}: got {got}, want {want}");
    }
}

fn wave(length: usize) -> Vec<f64> {
    let sample = |n: usize| {
        let t = n as f64 / 16000.0;
        0.4 * (TAU * 440.0 * t).sin()
            + 0.1 * (TAU * 3100.0 * t + 1.0).sin()
            + 0.01 * (n as f64 * n as f64).sin()
    };
    (0..length).map(sample).collect()
}

/// The equations of the filter-bank cepstra, sample by sample.
fn filter_bank_by_hand(wave: &[f64], config: &SpectralConfig) -> Vec<f64> {
    let (n, hop, filters) = (config.n_fft, config.hop, config.num_filters());
    let half = n / 2;
    let mirrored = |at: i64| {
        let last = wave.len() as i64 - 1;
        let at = at.abs();
        wave[if at > last { 2 * last - at } else { at } as usize]
    };
    let top = config.sample_rate as f64 / 2.0;
    let point = |i: usize| {
        let share = i as f64 / (filters + 1) as f64;
        match config.kind {
            SpectralKind::Mfcc => 700.0 * (10f64.powf(share * (1.0 + top / 700.0).log10()) - 1.0),
            _ => share * top,
        }
    };
    let mut decibels = Vec::new();
    for t in 0..1 + wave.len() / hop {
        let mut bank = vec![0.0f64; filters];
        for bin in 0..=half {
            let (mut re, mut im) = (0.0, 0.0);
            for i in 0..n {
                let w = 0.5 - 0.5 * (TAU * i as f64 / n as f64).cos();
                let x = w * mirrored((t * hop + i) as i64 - half as i64);
                let angle = TAU * (bin * i) as f64 / n as f64;
                re += x * angle.cos();
                im -= x * angle.sin();
            }
            let f = top * bin as f64 / half as f64;
            for (m, sum) in bank.iter_mut().enumerate() {
                let (a, b, c) = (point(m), point(m + 1), point(m + 2));
                *sum += ((f - a) / (b - a)).min((c - f) / (c - b)).max(0.0) * (re * re + im * im);
            }
        }
        decibels.extend(bank.iter().map(|power| 10.0 * power.max(1e-10).log10()));
    }
    let loudest = decibels.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let floored: Vec<f64> = decibels.iter().map(|db| db.max(loudest - config.top_db)).collect();
    cosine(&floored, filters, config.coefficients)
}

fn cosine(rows: &[f64], points: usize, coefficients: usize) -> Vec<f64> {
    let f = points as f64;
    let column = |row: &[f64], k: usize| -> f64 {
        let scale = if k == 0 { (1.0 / f).sqrt() } else { (2.0 / f).sqrt() };
        row.iter().enumerate().map(|(n, x)| x * scale * (PI / f * (n as f64 + 0.5) * k as f64).cos()).sum()
    };
    rows.chunks(points).flat_map(|row| (0..coefficients).map(move |k| column(row, k))).collect()
}

/// The equations of the constant-Q cepstra, sample by sample.
fn constant_q_by_hand(wave: &[f64], config: &SpectralConfig) -> Vec<f64> {
    let (bins, points) = (config.num_filters(), config.resample_points);
    let per_octave = config.bins_per_octave as f64;
    let quality = 1.0 / ((1.0 / per_octave).exp2() - 1.0);
    let f: Vec<f64> = (0..bins).map(|b| config.f_min * (b as f64 / per_octave).exp2()).collect();
    let mut rows = Vec::new();
    for t in 0..1 + wave.len() / config.hop {
        let logs: Vec<f64> = (f.iter())
            .map(|f| {
                let size = (quality * config.sample_rate as f64 / f).ceil() as usize;
                let (mut re, mut im) = (0.0, 0.0);
                for n in 0..size {
                    let at = (t * config.hop + n) as i64 - (size / 2) as i64;
                    let x = usize::try_from(at).ok().and_then(|at| wave.get(at)).copied().unwrap_or(0.0);
                    let w = 0.5 - 0.5 * (TAU * n as f64 / size as f64).cos();
                    let angle = TAU * quality * n as f64 / size as f64;
                    re += x * w * angle.cos() / size as f64;
                    im -= x * w * angle.sin() / size as f64;
                }
                (re * re + im * im + 1e-8).ln()
            })
            .collect();
        for point in 0..points {
            let at = f[0] + (f[bins - 1] - f[0]) * point as f64 / (points - 1) as f64;
            let upper = (1..bins - 1).find(|b| f[*b] > at).unwrap_or(bins - 1);
            let share = ((at - f[upper - 1]) / (f[upper] - f[upper - 1])).min(1.0);
            rows.push(logs[upper - 1] + share * (logs[upper] - logs[upper - 1]));
        }
    }
    cosine(&rows, points, config.coefficients)
}

fn small(kind: SpectralKind) -> SpectralConfig {
    SpectralConfig::new()
        .with_kind(kind)
        .with_n_fft(32)
        .with_filters(Some(9))
        .with_coefficients(5)
        .with_f_min(500.0)
        .with_bins_per_octave(3)
        .with_resample_points(7)
}

#[test]
fn front_ends_match_the_equations_at_odd_sizes() {
    for device in devices() {
        for kind in [SpectralKind::Lfcc, SpectralKind::Mfcc, SpectralKind::Cqcc] {
            // A hop longer than the frame, one that does not divide it, and the shortest wave of all.
            for (length, hop) in [(123, 7), (150, 47), (17, 1), (17, 16), (64, 32)] {
                let config = small(kind).with_hop(hop);
                let front_end = config.init(&device);
                let samples = wave(length);
                let got = front_end.forward(tensor(&samples, [1, length], &device)).unwrap();
                assert_eq!(got.dims(), [1, front_end.frames(length), 5]);
                let want = match kind {
                    SpectralKind::Cqcc => constant_q_by_hand(&samples, &config),
                    _ => filter_bank_by_hand(&samples, &config),
                };
                assert_close(&values(got), &want, 2e-4);
            }
        }
    }
}

#[test]
fn an_utterance_does_not_depend_on_its_batch() {
    for device in devices() {
        for kind in [SpectralKind::Lfcc, SpectralKind::Cqcc] {
            let front_end = small(kind).with_hop(20).with_deltas(2).init(&device);
            let loud: Vec<f64> = wave(200).iter().map(|x| 100.0 * x).collect();
            let both = [wave(200), loud].concat();
            let both = values(front_end.forward(tensor(&both, [2, 200], &device)).unwrap());
            let alone = values(front_end.forward(tensor(&wave(200), [1, 200], &device)).unwrap());
            assert_close(&both[..alone.len()], &alone, 1e-5);
        }
    }
}

#[test]
fn a_tone_is_found_where_it_is() {
    let device = Device::flex();
    // A transform of the cepstra back to the filters: all of them are kept, so the basis is orthonormal.
    let config = SpectralConfig::new().with_filters(Some(15)).with_coefficients(15).with_n_fft(256);
    let tone: Vec<f64> = (0..1600).map(|n| (TAU * 3000.0 * n as f64 / 16000.0).sin()).collect();
    let cepstra = values(config.init(&device).forward(tensor(&tone, [1, 1600], &device)).unwrap());
    let middle = &cepstra[5 * 15..6 * 15];
    let filter = |n: usize| -> f64 {
        (0..15)
            .map(|k| {
                let scale = if k == 0 { 1.0f64 } else { 2.0 } / 15.0;
                middle[k] * scale.sqrt() * (PI / 15.0 * (n as f64 + 0.5) * k as f64).cos()
            })
            .sum()
    };
    let loudest = (0..15).max_by(|a, b| filter(*a).total_cmp(&filter(*b))).unwrap();
    // Filters are 500 Hz apart: 500, 1000, ..., 3000 is the sixth.
    assert_eq!(loudest, 5);
    let weakest = (0..15).map(filter).fold(f64::INFINITY, f64::min);
    assert!((filter(5) - weakest) <= 80.0 + 1e-2, "nothing lies more than 80 dB below the loudest cell");
}

#[test]
fn silence_has_cepstra() {
    for device in devices() {
        for kind in [SpectralKind::Lfcc, SpectralKind::Mfcc, SpectralKind::Cqcc] {
            let front_end = small(kind).with_deltas(2).init(&device);
            let got = front_end.forward(Tensor::zeros([1, 400], &device)).unwrap();
            let normed = values(normalize_utterances(got.clone()));
            assert!(values(got).iter().chain(&normed).all(|value| value.is_finite()));
        }
    }
}

#[test]
fn gradients_reach_the_wave() {
    for device in devices() {
        let device = device.autodiff();
        for kind in [SpectralKind::Lfcc, SpectralKind::Cqcc] {
            let front_end = small(kind).with_hop(20).with_deltas(1).init(&device);
            let wave = tensor(&wave(100), [1, 100], &device).require_grad();
            let gradients = front_end.forward(wave.clone()).unwrap().square().sum().backward();
            let gradient = values(wave.grad(&gradients).unwrap());
            assert!(gradient.iter().all(|g| g.is_finite()) && gradient.iter().any(|g| g.abs() > 1e-3));
        }
    }
}

#[test]
fn deltas_are_slopes() {
    for device in devices() {
        let line: Vec<f64> = (0..8).map(|t| 3.0 * t as f64 - 1.0).collect();
        let slopes = values(deltas(tensor(&line, [1, 8, 1], &device)));
        assert_close(&slopes[2..6], &[3.0; 4], 1e-6);
        // At the first frame x_{-1} = x_{-2} = x_0: (x_1 - x_0 + 2 (x_2 - x_0)) / 10 = (3 + 12) / 10.
        assert_close(&slopes[..1], &[1.5], 1e-6);
        assert_eq!(values(deltas(tensor(&[4.0, 5.0], [1, 1, 2], &device))), [0.0, 0.0]);
    }
}

#[test]
fn utterances_are_normed_each_on_its_own() {
    for device in devices() {
        let x = tensor(&[1.0, 3.0, 5.0, -100.0, 0.0, 100.0], [2, 3, 1], &device);
        let r = 1.5f64.sqrt();
        assert_close(&values(normalize_utterances(x)), &[-r, 0.0, r, -r, 0.0, r], 1e-5);
    }
}

#[test]
fn front_ends_refuse_what_they_cannot_use() {
    let device = Device::flex();
    let field = |config: SpectralConfig| config.try_init(&device).unwrap_err().field;
    for kind in [SpectralKind::Lfcc, SpectralKind::Mfcc] {
        assert_eq!(field(small(kind).with_coefficients(10)), "coefficients");
        for n_fft in [0, 33, 16384] {
            assert_eq!(field(small(kind).with_n_fft(n_fft)), "n_fft");
        }
        for top_db in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(field(small(kind).with_top_db(top_db)), "top_db");
        }
    }
    let cqcc = || small(SpectralKind::Cqcc);
    assert_eq!(field(cqcc().with_coefficients(8)), "coefficients");
    assert!(cqcc().with_coefficients(7).with_filters(Some(4)).try_init(&device).is_ok());
    let error = cqcc().with_filters(Some(14)).try_init(&device).unwrap_err();
    assert_eq!((error.field.as_str(), error.got.as_str()), ("filters", "bin 13 at 10079.4 Hz"));
    assert!(cqcc().with_filters(Some(13)).try_init(&device).is_ok(), "bin 12 lies on rate / 2");
    for f_min in [0.0, f64::NAN, 1e-3] {
        assert_eq!(field(cqcc().with_f_min(f_min)), "f_min");
    }
    assert_eq!(field(cqcc().with_bins_per_octave(0)), "bins_per_octave");
    assert_eq!(field(cqcc().with_resample_points(0)), "resample_points");
    assert_eq!(field(small(SpectralKind::Lfcc).with_hop(0)), "hop");
    assert_eq!(field(small(SpectralKind::Lfcc).with_deltas(3)), "deltas");
    assert_eq!(field(small(SpectralKind::Lfcc).with_filters(Some(0))), "filters");
    assert_eq!(field(small(SpectralKind::Lfcc).with_sample_rate(0)), "sample_rate");
}

#[test]
fn waves_that_cannot_be_used_are_refused() {
    for device in devices() {
        let front_end = small(SpectralKind::Lfcc).init(&device);
        let refused = |front_end: &SpectralFrontEnd, wave: Tensor<2>| front_end.forward(wave).unwrap_err();
        assert_eq!(refused(&front_end, Tensor::zeros([1, 16], &device)).got, "[1, 16]");
        assert!(front_end.forward(Tensor::zeros([1, 17], &device)).is_ok());
        assert_eq!(refused(&front_end, Tensor::zeros([0, 400], &device)).got, "[0, 400]");
        let constant_q = small(SpectralKind::Cqcc).init(&device);
        assert_eq!(refused(&constant_q, Tensor::zeros([1, 0], &device)).got, "[1, 0]");
        assert!(constant_q.forward(Tensor::ones([1, 1], &device)).is_ok());
        for bad in [f64::NAN, f64::INFINITY] {
            let mut samples = [wave(50), wave(50)].concat();
            samples[77] = bad;
            let error = refused(&front_end, tensor(&samples, [2, 50], &device));
            assert_eq!((error.field.as_str(), error.got.as_str()), ("wave", "sample 1 with NaN or infinity"));
        }
    }
}

#[test]
fn filters_without_a_bin_are_legal_and_named() {
    let device = Device::flex();
    // 9 bins 1000 Hz apart, filters 200 Hz apart: those around a multiple of 1000 Hz alone hold one.
    let config = SpectralConfig::new().with_n_fft(16).with_filters(Some(39)).with_coefficients(4);
    let front_end = config.init(&device);
    let empty = front_end.empty_filters();
    assert_eq!(empty.len(), 39 - 7);
    assert!(!empty.contains(&4) && empty.contains(&5));
    let got = values(front_end.forward(tensor(&wave(300), [1, 300], &device)).unwrap());
    assert!(got.iter().all(|value| value.is_finite()));
    assert!(small(SpectralKind::Lfcc).init(&device).empty_filters().is_empty());
}

fn fusion(strategy: Strategy) -> ViewFusionConfig {
    ViewFusionConfig::new(3, 5).with_d_model(4).with_heads(2).with_strategy(strategy)
}

#[test]
fn every_fusion_gives_a_frame_for_each_self_supervised_one() {
    for device in devices() {
        for strategy in Strategy::ALL {
            let fusion = fusion(strategy).init(&device);
            for (ssl, spectral) in [(1, 1), (1, 9), (7, 1), (5, 11), (4, 4)] {
                let views = fusion
                    .forward(ramp([2, ssl, 3], 1.0, &device), ramp([2, spectral, 5], 0.7, &device))
                    .unwrap();
                assert_eq!(views.fused.dims(), [2, ssl, 4]);
                assert!(values(views.fused).iter().all(|value| value.is_finite()));
                assert_eq!(views.gate.is_some(), strategy == Strategy::Gate);
            }
        }
    }
}

#[test]
fn a_gate_at_its_ends_passes_one_view() {
    for device in devices() {
        let mut fusion = fusion(Strategy::Gate).init(&device);
        let (ssl, spectral) = (ramp([2, 6, 3], 1.0, &device), ramp([2, 6, 5], 0.7, &device));
        let s = fusion.ssl_norm.forward(fusion.ssl_proj.forward(ssl.clone()));
        let x = fusion.spectral_norm.forward(fusion.spectral_proj.forward(spectral.clone()));
        for (logit, share, view) in [(1e4, 1.0, s), (-1e4, 0.0, x)] {
            let Fusion::Gate(gate) = &mut fusion.strategy else { panic!("a gate") };
            gate.outer.bias = Some(Param::from_tensor(Tensor::full([4], logit, &device)));
            let views = fusion.forward(ssl.clone(), spectral.clone()).unwrap();
            assert_close(&values(views.fused), &values(view), 0.0);
            assert!(values(views.gate.unwrap()).iter().all(|gate| *gate == share));
        }
    }
}

#[test]
fn attention_to_one_spectral_frame_adds_the_same_everywhere() {
    // The softmax over one key is 1: LN(s + W_o v + b_o), whatever the queries.
    for device in devices() {
        let fusion = fusion(Strategy::CrossAttention).init(&device);
        let (ssl, spectral) = (ramp([1, 5, 3], 1.0, &device), ramp([1, 1, 5], 0.7, &device));
        let repeated = spectral.clone().repeat_dim(1, 6);
        let one = fusion.forward(ssl.clone(), spectral).unwrap().fused;
        let many = fusion.forward(ssl, repeated).unwrap().fused;
        assert_close(&values(one), &values(many), 1e-5);
    }
}

#[test]
fn views_that_do_not_fit_are_refused() {
    for device in devices() {
        for strategy in Strategy::ALL {
            let fusion = fusion(strategy).init(&device);
            let refused = |ssl: [usize; 3], spectral: [usize; 3]| {
                let views = fusion.forward(Tensor::zeros(ssl, &device), Tensor::zeros(spectral, &device));
                views.unwrap_err().field
            };
            assert_eq!(refused([2, 4, 3], [3, 4, 5]), "spectral");
            assert_eq!(refused([2, 0, 3], [2, 4, 5]), "ssl");
            assert_eq!(refused([2, 4, 3], [2, 0, 5]), "spectral");
            assert_eq!(refused([2, 4, 2], [2, 4, 5]), "ssl");
            assert_eq!(refused([2, 4, 3], [2, 4, 6]), "spectral");
            assert_eq!(refused([0, 4, 3], [0, 4, 5]), "ssl");
        }
        let single = SingleViewConfig::new(3).with_d_model(4).init(&device);
        assert_eq!(single.forward(Tensor::zeros([1, 0, 3], &device)).unwrap_err().field, "view");
    }
}

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

#[test]
fn equal_error_rates_of_small_sets() {
    let of = |scores: &[f64], labels: &[usize]| equal_error_rate(scores, labels).unwrap();
    // Told apart: rejected are both forgeries.
    let apart = of(&[0.9, -1.0, 0.5, 0.1], &[1, 0, 1, 0]);
    assert_eq!(apart, EqualErrorRate { rate: 0.0, threshold: 0.1 });
    // The wrong way round: nothing helps.
    assert_eq!(of(&[-1.0, 1.0], &[1, 0]).rate, 1.0);
    // One of either on the wrong side: s g s g, rejected two.
    let mixed = of(&[1.0, 2.0, 3.0, 4.0], &[0, 1, 0, 1]);
    assert_eq!(mixed, EqualErrorRate { rate: 0.5, threshold: 2.0 });
    // Equal scores keep their order; the first smallest difference counts.
    let equal = of(&[0.5, 0.5], &[0, 1]);
    assert_eq!(equal, EqualErrorRate { rate: 0.0, threshold: 0.5 });
    // Only the order counts.
    let moved = of(&[10.0, 11.0, 12.0, 400.0], &[0, 1, 0, 1]);
    assert_eq!(moved.rate, mixed.rate);
    assert_eq!(of(&[f64::NEG_INFINITY, f64::INFINITY], &[0, 1]).rate, 0.0);
}

#[test]
fn rates_that_do_not_exist_are_refused() {
    let field = |scores: &[f64], labels: &[usize]| equal_error_rate(scores, labels).unwrap_err().field;
    assert_eq!(field(&[1.0, 2.0], &[1, 1]), "labels");
    assert_eq!(field(&[1.0, 2.0], &[0, 0]), "labels");
    assert_eq!(field(&[], &[]), "labels");
    assert_eq!(field(&[1.0, 2.0], &[0]), "labels");
    assert_eq!(field(&[1.0, 2.0], &[0, 2]), "labels");
    assert_eq!(field(&[1.0, f64::NAN], &[0, 1]), "scores");
}
