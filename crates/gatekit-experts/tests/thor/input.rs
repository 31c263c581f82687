//! What is refused, and how it is named.

use gatekit_core::InputError;
use gatekit_experts::thor::{ThorBatch, ThorExperts, ThorLayerConfig};

use super::*;

#[test]
fn unusable_configurations_name_the_field() {
    let device = Device::flex();
    for (field, config) in [
        ("vocab_size", ThorConfig { vocab_size: 0, ..small() }),
        ("embed_dim", small().with_embed_dim(0)),
        ("ffn_dim", small().with_ffn_dim(0)),
        ("num_experts", small().with_num_experts(0)),
        ("num_heads", small().with_num_heads(0)),
        ("num_heads", small().with_num_heads(3)),
        ("encoder_layers", small().with_encoder_layers(0)),
        ("decoder_layers", small().with_decoder_layers(usize::MAX)),
        ("expert_layers", small().with_expert_layers(Some(vec![0, 3]))),
        ("layer_norm_eps", small().with_layer_norm_eps(0.0)),
        ("dropout", small().with_dropout(1.0)),
        ("dropout", small().with_dropout(f64::NAN)),
        ("consistency_alpha", small().with_consistency_alpha(-1.0)),
        ("consistency_alpha", small().with_consistency_alpha(f64::INFINITY)),
        ("label_smoothing", small().with_label_smoothing(1.0)),
        ("padding_idx", small().with_padding_idx(13)),
        ("label_smoothing", ThorConfig { vocab_size: 1, padding_idx: 0, ..small() }),
    ] {
        let error = config.try_init(&device).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    let no_expert = StochasticExpertsConfig::new(6, 9).with_num_experts(0);
    assert_eq!(no_expert.try_init(&device).unwrap_err().field, "num_experts");
    assert_eq!(ExpertDraw::new(0, ExpertLevel::Pass, 0).unwrap_err().field, "num_experts");
    let layer = ThorLayerConfig::new(6, 9).with_num_heads(4);
    assert_eq!(layer.try_init_encoder(&device).unwrap_err().field, "num_heads");
    assert_eq!(layer.try_init_decoder(&device).unwrap_err().field, "num_heads");
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, InputError>, needles: &[&str]) {
    let error = outcome.expect_err("refused").to_string();
    for needle in needles {
        assert!(error.contains(needle), "{error:?} does not name {needle:?}");
    }
}

#[test]
fn experts_that_do_not_exist_are_named_with_their_position() {
    let device = Device::flex();
    let layer = ffn(3, &device);
    let x = || wave([2, 2, 6], 1.0, &device);
    refused(layer.forward(x(), &ExpertAssignment::Pass(3)), &["`experts`", "3 at [0]", "0 .. 3"]);
    refused(layer.forward(x(), &ExpertAssignment::Sentence(vec![0, 7])), &["7 at [1]"]);
    let token = ExpertAssignment::Token { experts: vec![0, 1, 2, 9], time: 2 };
    refused(layer.forward(x(), &token), &["9 at [1, 1]"]);

    let level = ExpertLevel::Token;
    let negative = ids(&[&[0, 1], &[-1, 2]], &device);
    refused(ExpertAssignment::from_tensor(level, &negative, 3), &["`experts`", "-1 at [1, 0]", "0 .. 3"]);
    let many = Tensor::<1, Int>::from_data([0, 4], &device);
    refused(ExpertAssignment::from_tensor(ExpertLevel::Sentence, &many, 4), &["4 at [1]"]);
}

#[test]
fn experts_of_other_tokens_are_refused() {
    let device = Device::flex();
    let layer = ffn(3, &device);
    let x = || wave([2, 2, 6], 1.0, &device);
    refused(layer.forward(x(), &ExpertAssignment::Sentence(vec![0; 3])), &["3 rows", "[2, 2]"]);
    let token = ExpertAssignment::Token { experts: vec![0; 4], time: 4 };
    refused(layer.forward(x(), &token), &["4 positions of 4 a row", "[2, 2]"]);

    let row = Tensor::<1, Int>::from_data([0, 1], &device);
    let grid = ids(&[&[0, 1]], &device);
    refused(ExpertAssignment::from_tensor(ExpertLevel::Pass, &row, 3), &["shape [2]", "[1]"]);
    refused(ExpertAssignment::from_tensor(ExpertLevel::Sentence, &grid, 3), &["[1, 2]", "one a row"]);
    refused(ExpertAssignment::from_tensor(ExpertLevel::Token, &row, 3), &["[2]", "one a position"]);
}

#[test]
fn a_model_asks_for_one_assignment_a_layer_with_experts() {
    let device = Device::flex();
    let model = lively(&small(), &device);
    assert_eq!(model.expert_layers(), [1, 2]);
    let (source, target) = (ids(&[&[3, 4, 5]], &device), ids(&[&[2, 6]], &device));
    let pass = ExpertAssignment::Pass(0);
    let of = |encoder: usize, decoder: usize| ThorExperts {
        encoder: vec![pass.clone(); encoder],
        decoder: vec![pass.clone(); decoder],
    };
    assert!(model.forward(source.clone(), target.clone(), &of(1, 2)).is_ok());
    refused(
        model.forward(source.clone(), target.clone(), &of(2, 2)),
        &["2 assignments", "1, one for each encoder"],
    );
    refused(model.forward(source.clone(), target.clone(), &of(1, 0)), &["0 assignments", "decoder"]);
    refused(model.start(source.clone(), &of(1, 3)), &["3 assignments", "2, one for each decoder"]);
    // Experts drawn for two tokens do not serve a third.
    let mut experts = model.draw(&mut draw(ExpertLevel::Token, 0), 1, 3, 2);
    refused(
        model.greedy(source.clone(), 2, 12, 9, &experts).map(|rows| rows[0].len() / 3),
        &["those of 2 positions"],
    );
    experts.decoder.pop();
    refused(model.greedy(source, 2, 12, 2, &experts), &["1 assignments"]);
}

#[test]
fn batches_are_checked() {
    let device = Device::flex();
    let model = lively(&small(), &device);
    let batch = |source: &[&[i64]], input: &[&[i64]], target: &[&[i64]]| {
        ThorBatch::new(ids(source, &device), ids(input, &device), ids(target, &device), &model)
    };
    assert_eq!(batch(&[&[3, 1]], &[&[2, 4, 1]], &[&[4, 2, 1]]).unwrap().real_targets(), 2);
    refused(batch(&[&[3, 13]], &[&[2]], &[&[2]]), &["`source`", "13 at [0, 1]", "0 .. 13"]);
    refused(batch(&[&[3], &[4]], &[&[2], &[2]], &[&[2], &[-1]]), &["`target`", "-1 at [1, 0]"]);
    refused(batch(&[&[3], &[1]], &[&[2], &[2]], &[&[2], &[2]]), &["`source`", "padding at [1, 0]"]);
    refused(batch(&[&[3]], &[&[1]], &[&[2]]), &["`target_input`", "padding at [0, 0]"]);
    refused(batch(&[&[3]], &[&[2, 2]], &[&[2]]), &["[1, 1], [1, 2] and [1, 1]"]);
    refused(batch(&[&[3], &[3]], &[&[2]], &[&[2]]), &["[2, 1]"]);
}

#[test]
#[should_panic(expected = "`draw` draws among 4 experts, the layers have 2")]
fn a_generator_of_other_experts_panics() {
    let model = small().with_num_experts(2).init(&Device::flex());
    model.draw(&mut draw(ExpertLevel::Pass, 0), 1, 1, 1);
}

#[test]
fn of_a_source_of_padding_nothing_is_read() {
    let device = Device::flex();
    let model = small().init(&device);
    let read = |source: &[i64]| -> Vec<f64> {
        let logits = model.mean_expert(ids(&[source], &device), ids(&[&[2]], &device)).unwrap();
        logits.into_data().iter::<f64>().collect()
    };
    let nothing = read(&[1, 1]);
    assert!(nothing.iter().all(|logit| logit.is_finite()));
    // However much of it there is, and unlike a source that says something.
    assert_eq!(nothing, read(&[1, 1, 1]));
    assert_ne!(nothing, read(&[3, 1]));
}
