//! Training: two drawings a step, a loss that falls, experts that come to agree.

use burn::optim::{AdamConfig, ModuleOptimizer};
use gatekit_experts::thor::{ConsistencyLoss, ThorBatch, ThorStep, ThorTrainer};

use super::*;

fn adam() -> ModuleOptimizer {
    AdamConfig::new().with_beta_2(0.98).with_epsilon(1e-8).init()
}

fn trainer(loss: ConsistencyLoss, level: ExpertLevel, device: &Device) -> ThorTrainer {
    device.seed(1);
    let model = small().with_encoder_layers(1).with_decoder_layers(1).init(device);
    ThorTrainer::new(model, adam(), loss, draw(level, 9)).unwrap()
}

/// Three tokens in reverse.
fn batch(trainer: &ThorTrainer, rows: &[[i64; 3]], device: &Device) -> ThorBatch {
    let tensor = |rows: Vec<Vec<i64>>| ids(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>(), device);
    let source = tensor(rows.iter().map(|row| row.to_vec()).collect());
    let input = tensor(rows.iter().map(|[a, b, c]| vec![2, *c, *b, *a]).collect());
    let target = tensor(rows.iter().map(|[a, b, c]| vec![*c, *b, *a, 2]).collect());
    ThorBatch::new(source, input, target, &trainer.model).unwrap()
}

const ROWS: [[i64; 3]; 4] = [[3, 4, 5], [6, 7, 8], [9, 10, 11], [5, 12, 3]];

#[test]
fn every_pass_draws_anew() {
    let device = Device::flex().autodiff();
    let mut trainer = trainer(ConsistencyLoss::new(), ExpertLevel::Token, &device);
    let batch = batch(&trainer, &ROWS, &device);
    let first = trainer.step(1e-3, std::slice::from_ref(&batch)).unwrap();
    let second = trainer.step(1e-3, std::slice::from_ref(&batch)).unwrap();
    let [[a, b]] = &first.experts[..] else { panic!("one batch, two passes") };
    let [[c, d]] = &second.experts[..] else { panic!("one batch, two passes") };
    assert!(a != b && b != c && c != d && a != d);
    assert!(first.consistency > 0.0 && second.consistency > 0.0);
    assert_eq!(first.sample_size, 16);

    // Two passes with one state of the generator are one pass twice: nothing is left to agree on.
    let model = &trainer.model;
    let (source, target) = (ids(&[&[3, 4, 5]], &device), ids(&[&[2, 5, 4]], &device));
    let pass = || {
        let experts = model.draw(&mut draw(ExpertLevel::Token, 9), 1, 3, 3);
        model.forward(source.clone(), target.clone(), &experts).unwrap()
    };
    let parts = ConsistencyLoss::new().forward([pass(), pass()], &target).unwrap();
    assert_eq!(values(parts.consistency), [0.0]);
}

#[test]
fn batches_add_up_to_one() {
    for device in devices() {
        let device = device.autodiff();
        // The experts of a pass do not depend on how the rows are cut only if there is one.
        let config = small().with_num_experts(1);
        let model = config.init(&device).materialize();
        let step = |cuts: &[&[[i64; 3]]]| {
            let draw = ExpertDraw::new(1, ExpertLevel::Pass, 0).unwrap();
            let mut trainer = ThorTrainer::new(model.clone(), adam(), config.loss(), draw).unwrap();
            let batches: Vec<_> = cuts.iter().map(|rows| batch(&trainer, rows, &device)).collect();
            let report = trainer.step(1e-2, &batches).unwrap();
            (report.loss, report.sample_size, values(trainer.model.embed_tokens.weight.val()))
        };
        let (whole, parts) = (step(&[&ROWS]), step(&[&ROWS[..1], &ROWS[1..]]));
        assert!((whole.0 - parts.0).abs() < 1e-5 && whole.1 == parts.1);
        assert_close(&parts.2, &whole.2, 1e-3);
    }
}

#[test]
fn nothing_but_padding_is_refused() {
    let device = Device::flex().autodiff();
    let mut trainer = trainer(ConsistencyLoss::new(), ExpertLevel::Pass, &device);
    let padding =
        ThorBatch::new(ids(&[&[3]], &device), ids(&[&[2]], &device), ids(&[&[1]], &device), &trainer.model)
            .unwrap();
    let before = values(trainer.model.embed_tokens.weight.val());
    for batches in [vec![], vec![padding.clone(), padding.clone()]] {
        let error = trainer.step(1e-3, &batches).unwrap_err();
        assert_eq!(error.field, "target");
    }
    assert_eq!(values(trainer.model.embed_tokens.weight.val()), before);
    // Beside a real batch, one of padding weighs nothing.
    let real = batch(&trainer, &ROWS[..1], &device);
    assert_eq!(trainer.step(1e-3, &[padding, real]).unwrap().sample_size, 4);
    let other = ExpertDraw::new(3, ExpertLevel::Pass, 0).unwrap();
    let error = ThorTrainer::new(small().init(&device), adam(), small().loss(), other).err().unwrap();
    assert_eq!(error.field, "num_experts");
}

#[test]
fn training_lowers_the_loss_and_consistency_brings_experts_together() {
    let device = Device::flex().autodiff();
    let train = |alpha: f64| {
        let loss = ConsistencyLoss::new().with_consistency_alpha(alpha).with_label_smoothing(0.0);
        let mut trainer = trainer(loss, ExpertLevel::Pass, &device);
        let batch = batch(&trainer, &ROWS, &device);
        let reports: Vec<_> =
            (0..120).map(|_| trainer.step(5e-3, std::slice::from_ref(&batch)).unwrap()).collect();
        let mean =
            |of: &[ThorStep], part: fn(&ThorStep) -> f64| of.iter().map(part).sum::<f64>() / of.len() as f64;
        let cross = |of: &[ThorStep]| mean(of, |step| step.cross_entropy[0] + step.cross_entropy[1]);
        let (first, last) = (cross(&reports[..10]), cross(&reports[110..]));
        assert!(last < 0.3 * first, "alpha {alpha}: {first} to {last}");
        mean(&reports[40..], |step| step.consistency)
    };
    let (apart, together) = (train(0.0), train(5.0));
    assert!(together < 0.5 * apart, "consistency {together} with the term, {apart} without");
}
