//! The series on the grid: time attention and the gate.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_core::gate::GateLevel;
use gatekit_core::time_embedding::{TimeEmbedding, TimeEmbeddingConfig};
use gatekit_fusion::irregular_ehr::{
    MultiTimeAttention, MultiTimeAttentionConfig, SeriesMixing, Utde, UtdeConfig,
};

use crate::{assert_close, devices, mask, panic_of, ramp, tensor, values};

fn attention(grid: usize, device: &Device) -> (TimeEmbedding, MultiTimeAttention) {
    device.seed(5);
    let time = TimeEmbeddingConfig::new(6).init(device);
    let attention = MultiTimeAttentionConfig::new(2, 3).with_grid(grid).with_embed_time(6).with_time_heads(3);
    (time, attention.init(device))
}

#[test]
fn padding_changes_nothing() {
    for device in devices() {
        let (time, attention) = attention(4, &device);
        let stored = [0.5, 0.0, -1.0, 2.0];
        let seen = [true, false, true, true];
        let alone = attention.forward(
            &time,
            tensor(&stored, [1, 2, 2], &device),
            tensor(&[0.25, 0.75], [1, 2], &device),
            &mask(&seen, [1, 2, 2], &device),
        );
        let padded = attention.forward(
            &time,
            tensor(&[&stored[..], &[0.0; 4]].concat(), [1, 4, 2], &device),
            tensor(&[0.25, 0.75, f64::NAN, -9.0], [1, 4], &device),
            &mask(&[&seen[..], &[false; 4]].concat(), [1, 4, 2], &device),
        );
        assert_close(&values(padded), &values(alone), 1e-6);
    }
}

#[test]
fn a_mask_of_rows_is_that_mask_for_every_channel() {
    for device in devices() {
        let (time, attention) = attention(5, &device);
        let times = || tensor(&[0.0, 0.4, 0.4, 1.0], [1, 4], &device);
        let rows = [true, false, true, true];
        let (mut stored, mut anything) = (ramp(8, 1.0), ramp(8, 1.0));
        for channel in 0..2 {
            (stored[2 + channel], anything[2 + channel]) = (0.0, f64::NAN);
        }
        let channels: Vec<bool> = rows.iter().flat_map(|seen| [*seen; 2]).collect();
        let by_channel = attention.forward(
            &time,
            tensor(&stored, [1, 4, 2], &device),
            times(),
            &mask(&channels, [1, 4, 2], &device),
        );
        let by_row = attention.forward(
            &time,
            tensor(&anything, [1, 4, 2], &device),
            times(),
            &mask(&rows, [1, 4, 1], &device),
        );
        assert_close(&values(by_row), &values(by_channel), 1e-6);
    }
}

#[test]
fn a_single_row_and_a_grid_of_one_point() {
    for device in devices() {
        let (time, attention) = attention(1, &device);
        // All weight lies on the one row: W_o of its values, three times (heads), and the bias.
        let y = attention.forward(
            &time,
            tensor(&[2.0, 0.0], [1, 1, 2], &device),
            tensor(&[1.0], [1, 1], &device),
            &mask(&[true, false], [1, 1, 2], &device),
        );
        let map = &attention.linears[2];
        let x = tensor(&[2.0, 0.0, 2.0, 0.0, 2.0, 0.0], [1, 1, 6], &device);
        assert_eq!(y.dims(), [1, 1, 3]);
        assert_close(&values(y), &values(map.forward(x)), 1e-6);
    }
}

#[test]
fn what_cannot_be_observed_is_named() {
    let device = devices()[0].clone();
    let (time, attention) = attention(2, &device);
    let run = |value: f64, instant: f64, seen: bool| {
        let (stored, times) = (tensor(&[0.0, 0.0, value, 1.0], [2, 1, 2], &device), [0.5, instant]);
        let mask = mask(&[true, true, seen, true], [2, 1, 2], &device);
        attention.forward(&time, stored, tensor(&times, [2, 1], &device), &mask)
    };
    assert!(values(run(1.0, 1.000_001, true)).iter().all(|value| value.is_finite()), "a rounding error");
    for (value, instant, seen, text) in [
        (1.0, 1.1, true, "`times`"),
        (1.0, -0.1, true, "`times`"),
        (1.0, f64::NAN, true, "`times`"),
        (f64::NAN, 0.5, true, "`values`"),
        (1.0, 0.5, false, "0 where the mask is false"),
    ] {
        let message = panic_of(|| {
            run(value, instant, seen);
        });
        assert!(message.contains(text) && message.contains("sample 1"), "{message}");
    }
    let none = panic_of(|| {
        let empty = mask(&[], [1, 0, 2], &device);
        attention.forward(&time, Tensor::zeros([1, 0, 2], &device), Tensor::zeros([1, 0], &device), &empty);
    });
    assert!(none.contains("no row"), "{none}");
}

fn utde(level: GateLevel, mixing: SeriesMixing, device: &Device) -> Utde {
    device.seed(9);
    UtdeConfig::new(2)
        .with_grid(3)
        .with_embed_time(4)
        .with_time_heads(2)
        .with_d_model(5)
        .with_gate_level(level)
        .with_mixing(mixing)
        .init(device)
}

fn embedded(utde: &Utde, device: &Device) -> gatekit_fusion::irregular_ehr::SeriesEmbedding {
    let seen = [true, true, false, true, false, false, true, false];
    let stored: Vec<f64> = ramp(8, 1.0).iter().zip(seen).map(|(v, s)| if s { *v } else { 0.0 }).collect();
    utde.forward(
        tensor(&stored, [2, 2, 2], device),
        tensor(&[0.1, 0.9, 0.0, 0.3], [2, 2], device),
        &mask(&seen, [2, 2, 2], device),
        tensor(&ramp(24, 1.0), [2, 3, 4], device),
    )
}

#[test]
fn the_gate_belongs_to_its_level_and_mixes() {
    for device in devices() {
        for (level, shape) in [
            (GateLevel::Batch, [2, 1, 1]),
            (GateLevel::BatchSeq, [2, 3, 1]),
            (GateLevel::BatchSeqFeature, [2, 3, 5]),
        ] {
            let mut utde = utde(level, SeriesMixing::Gated, &device);
            let series = embedded(&utde, &device);
            assert_eq!((series.gate.dims(), series.embedding.dims()), (shape, [2, 3, 5]));
            let gate = series.gate.clone().expand([2, 3, 5]);
            let mixed = gate.clone() * series.interpolated + (gate.neg() + 1.0) * series.imputed;
            assert_close(&values(series.embedding), &values(mixed), 1e-6);
            for (logit, open) in [(500.0, true), (-500.0, false)] {
                let outer = &mut utde.moe.as_mut().expect("a gate").outer;
                let gates = outer.weight.dims()[1];
                outer.bias = Some(Param::from_tensor(Tensor::full([gates], logit, &device)));
                let series = embedded(&utde, &device);
                let passed = if open { series.interpolated } else { series.imputed };
                assert_eq!(values(series.embedding), values(passed));
            }
        }
    }
}

#[test]
fn without_a_gate_the_shares_are_fixed() {
    for device in devices() {
        let run = |mixing| embedded(&utde(GateLevel::Batch, mixing, &device), &device);
        let halves = run(SeriesMixing::EqualHalves);
        let mean = (values(halves.interpolated.clone()).into_iter())
            .zip(values(halves.imputed.clone()))
            .map(|(a, b)| (a + b) / 2.0);
        assert_close(&values(halves.embedding), &mean.collect::<Vec<_>>(), 1e-6);
        let alone = run(SeriesMixing::Interpolation);
        assert_eq!(values(alone.embedding), values(alone.interpolated));
        let alone = run(SeriesMixing::Imputation);
        assert_eq!(values(alone.embedding), values(alone.imputed));
        assert_eq!(values(alone.gate), [0.0, 0.0]);
    }
}

#[test]
fn a_table_of_another_grid_is_refused() {
    let device = devices()[0].clone();
    let utde = utde(GateLevel::Batch, SeriesMixing::Gated, &device);
    let (stored, seen) = (tensor(&[0.5, 0.5], [1, 1, 2], &device), mask(&[true; 2], [1, 1, 2], &device));
    let times = tensor(&[0.5], [1, 1], &device);
    let message = panic_of(|| {
        utde.forward(stored.clone(), times.clone(), &seen, Tensor::zeros([1, 4, 4], &device));
    });
    assert!(message.contains("[1, 4, 4]") && message.contains("[1, 3, 4]"), "{message}");
    let message = panic_of(|| {
        let seen = mask(&[true], [1, 1, 1], &device);
        utde.forward(stored.clone(), times.clone(), &seen, Tensor::zeros([1, 3, 4], &device));
    });
    assert!(message.contains("`mask` [1, 1, 1]"), "{message}");
}
