//! Two streams, and the model.

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_core::gate::GateLevel;
use gatekit_fusion::irregular_ehr::{
    EhrLabels, InterleavedEncoderConfig, LateFusionEncoder, SeriesMixing, StreamFusion, Task,
};

use crate::{assert_close, devices, loader, panic_of, ramp, small, stay, tensor, values, words};

fn config() -> InterleavedEncoderConfig {
    InterleavedEncoderConfig::new()
        .with_grid(4)
        .with_d_model(6)
        .with_heads(3)
        .with_cross_layers(2)
        .with_dropout(0.0)
}

#[test]
fn interleaved_streams_hear_of_one_another_and_late_ones_do_not() {
    for device in devices() {
        device.seed(3);
        let (interleaved, late) =
            (config().init(&device), LateFusionEncoder::new(&config(), &device).expect("widths"));
        // The weights of the maps are as many; biases and norms differ by less than a twentieth.
        let (ours, theirs) = (interleaved.num_params() as f64, late.num_params() as f64);
        assert!((ours / theirs - 1.0).abs() < 0.05, "{ours} {theirs}");
        let stream = |amplitude: f64| tensor(&ramp(24, amplitude), [1, 4, 6], &device);
        let series = stream(1.0);
        let heard = [1.0, -2.0].map(|amplitude| {
            let [_, both] = interleaved.forward(stream(amplitude), series.clone());
            let [_, alone] = late.forward(stream(amplitude), series.clone());
            [values(both), values(alone)]
        });
        let apart: f64 = heard[0][0].iter().zip(&heard[1][0]).map(|(a, b)| (a - b).abs()).sum();
        assert!(apart > 0.1, "{apart}");
        assert_eq!(heard[0][1], heard[1][1]);
    }
}

#[test]
fn streams_may_be_shorter_than_the_table_of_positions_but_not_longer() {
    for device in devices() {
        let encoder = config().init(&device);
        let [text, series] =
            encoder.forward(Tensor::ones([2, 1, 6], &device), Tensor::ones([2, 3, 6], &device));
        assert_eq!((text.dims(), series.dims()), ([2, 1, 6], [2, 3, 6]));
        for (lengths, name) in [([5, 4], "`text` [1, 5, 6]"), ([4, 5], "`series` [1, 5, 6]")] {
            let [text, series] = lengths.map(|steps| Tensor::<3>::zeros([1, steps, 6], &device));
            let message = panic_of(|| {
                encoder.forward(text, series);
            });
            assert!(message.contains(name), "{message}");
        }
    }
}

#[test]
fn a_missing_modality_is_legal_and_says_nothing() {
    for device in devices() {
        for (level, mixing, fusion) in [
            (GateLevel::Batch, SeriesMixing::Gated, StreamFusion::Interleaved),
            (GateLevel::BatchSeq, SeriesMixing::Gated, StreamFusion::Late),
            (GateLevel::BatchSeqFeature, SeriesMixing::Gated, StreamFusion::Interleaved),
            (GateLevel::Batch, SeriesMixing::EqualHalves, StreamFusion::Interleaved),
        ] {
            let config = small().with_gate_level(level).with_mixing(mixing).with_fusion(fusion);
            device.seed(1);
            let (model, encoder) = (config.init(&device), words(&device));
            let stays = [stay(0, 1.0), stay(1, -1.0)];
            let stays: Vec<_> = stays.iter().collect();
            let batch = loader(&config).batch(&stays, &encoder, &device).expect("stays");
            let probabilities = |batch| {
                let output = model.forward(&batch);
                assert_eq!((output.logits.dims(), output.probability.dims()), ([2, 2], [2, 1]));
                values(output.probability)
            };
            let full = probabilities(batch.clone());
            assert!(full.iter().all(|p| (0.0..=1.0).contains(p)) && full[0] != full[1]);
            // Without a modality the stays differ by the other one alone; without both, not at all.
            let both = probabilities(batch.without_series(0.0).without_notes());
            assert!((both[0] - both[1]).abs() < 1e-6 && both[0].is_finite(), "{both:?}");
            for one in [batch.without_series(0.0), batch.without_notes()] {
                let one = probabilities(one);
                assert!(one.iter().all(|p| p.is_finite()) && (one[0] - one[1]).abs() > 1e-7, "{one:?}");
            }
        }
    }
}

#[test]
fn the_loader_and_the_removal_agree() {
    for device in devices() {
        let config = small().with_fill(0.5);
        let (model, encoder) = (config.init(&device), words(&device));
        let full = [stay(0, 1.0), stay(1, -1.0)];
        let mut poor = full.clone();
        // One stay has lost its observations, the other its notes.
        (poor[0].hours, poor[0].values, poor[0].mask) = (vec![], vec![], vec![]);
        poor[1].notes.clear();
        let batch = |stays: &[_; 2]| {
            loader(&config).batch(&stays.iter().collect::<Vec<_>>(), &encoder, &device).expect("stays")
        };
        let logits = |batch| values(model.forward(&batch).logits);
        let got = logits(batch(&poor));
        let (series, notes) =
            (logits(batch(&full).without_series(0.5)), logits(batch(&full).without_notes()));
        assert_close(&got, &[series[0], series[1], notes[2], notes[3]], 1e-5);
    }
}

#[test]
fn losses_match_their_equations_also_far_out() {
    for device in devices() {
        let binary = small().init(&device);
        let logits = tensor(&[1.0, -1.0, 0.0, 300.0], [2, 2], &device);
        let labels = |labels: &[i64]| Tensor::<1, Int>::from_data(labels, &device);
        let loss = binary.loss(logits.clone(), &EhrLabels::Binary(labels(&[1, 0]))).expect("classes");
        let first = (1f64.exp() + (-1f64).exp()).ln() + 1.0;
        assert_close(&values(loss), &[(first + 300.0) / 2.0], 1e-4);

        let multilabel = small().with_task(Task::Multilabel).with_classes(Some(2)).init(&device);
        let truths = |values: &[i64]| EhrLabels::Multilabel(labels(values).reshape([2, 2]));
        let loss = multilabel.loss(logits.clone(), &truths(&[1, 1, 0, 0])).expect("labels");
        let soft = |z: f64| (1.0 + z.exp()).ln();
        assert_close(&values(loss), &[(soft(-1.0) + soft(1.0) + soft(0.0) + 300.0) / 4.0], 1e-4);

        for (model, labels) in [
            (&binary, truths(&[1, 1, 0, 0])),
            (&multilabel, EhrLabels::Binary(labels(&[1, 0]))),
            (&binary, EhrLabels::Binary(labels(&[1, 2]))),
            (&binary, EhrLabels::Binary(labels(&[1]))),
            (&multilabel, truths(&[1, 1, 0, -1])),
        ] {
            assert_eq!(model.loss(logits.clone(), &labels).unwrap_err().field, "labels");
        }
    }
}
