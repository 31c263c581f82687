//! Front ends against their equations.

use std::f64::consts::{PI, TAU};

use burn::tensor::{Device, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_fusion::two_views::spectral::deltas;
use gatekit_fusion::two_views::{SpectralConfig, SpectralFrontEnd, SpectralKind, normalize_utterances};

use crate::{assert_close, devices, small, tensor, values, wave};

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
