//! The recipe.

use burn::module::Module;
use burn::tensor::Device;
use gatekit_core::ModuleConfig;
use gatekit_fusion::irregular_ehr::{
    BagOfWords, EhrNetwork, EhrTrainer, EhrTrainingConfig, F1Score, IrregularEhrConfig, Stay, Task,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::{assert_close, devices, loader, small, stay, values, words};

fn network(config: &IrregularEhrConfig, device: &Device) -> EhrNetwork<BagOfWords> {
    device.seed(11);
    EhrNetwork { encoder: words(device), model: config.init(device) }
}

fn trainer(
    config: &IrregularEhrConfig,
    recipe: EhrTrainingConfig,
    device: &Device,
) -> EhrTrainer<BagOfWords> {
    EhrTrainer::new(network(config, device), loader(config), recipe, device).expect("a recipe")
}

fn stays(count: u64) -> Vec<Stay> {
    (0..count).map(|patient| stay(patient, if patient % 2 == 0 { 0.8 } else { -0.8 })).collect()
}

#[test]
fn training_lowers_the_loss_and_the_best_epoch_is_kept() {
    for device in devices() {
        let stays = stays(32);
        let (train, validation): (Vec<_>, Vec<_>) = stays.iter().partition(|stay| stay.patient < 24);
        let recipe = EhrTrainingConfig::new().with_learning_rate(3e-3).with_accumulation(4);
        let trainer = trainer(&small(), recipe, &device);
        let mut heard = 0;
        let (network, history) =
            trainer.fit(&train, &validation, &mut StdRng::seed_from_u64(1), |_| heard += 1).expect("stays");
        assert_eq!((heard, history.len()), (6, 6));
        assert!(history[5].loss < 0.5 * history[0].loss, "{history:?}");
        let best = history.iter().map(|epoch| epoch.validation_f1).fold(0.0, f64::max);
        let answers = network.answers(&validation, &loader(&small()), 3, &device).expect("stays");
        assert_eq!(F1Score::macro_mean(&answers, 0.5), best);
        assert!(best > 0.9, "{history:?}");
    }
}

#[test]
fn the_note_encoder_learns_in_its_epochs_alone() {
    for device in devices() {
        let stays = stays(4);
        let stays: Vec<&Stay> = stays.iter().collect();
        let mut trainer = trainer(&small(), EhrTrainingConfig::new(), &device);
        let words = |trainer: &EhrTrainer<BagOfWords>| values(trainer.network.encoder.words.weight.val());
        let model = |trainer: &EhrTrainer<BagOfWords>| values(trainer.network.model.out_layer.weight.val());
        let before = (words(&trainer), model(&trainer));
        trainer.step(1, &stays).expect("stays");
        assert_eq!(words(&trainer), before.0);
        // Adam's first step is its rate.
        let moved = |now: Vec<f64>, then: &[f64]| {
            now.iter().zip(then).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        assert!((moved(model(&trainer), &before.1) - 4e-4).abs() < 4e-5);
        trainer.step(2, &stays).expect("stays");
        assert!((moved(words(&trainer), &before.0) - 2e-5).abs() < 2e-6);
    }
}

#[test]
fn small_batches_add_up_to_a_large_one() {
    let device = devices()[0].clone();
    // Stays of one length: padding does not differ.
    let stays = stays(6);
    let stays: Vec<&Stay> = stays.iter().collect();
    let network = network(&small(), &device).materialize();
    let run = |batch_size, accumulation| {
        let recipe = EhrTrainingConfig::new().with_batch_size(batch_size).with_accumulation(accumulation);
        let trainer = EhrTrainer::new(network.clone(), loader(&small()), recipe, &device);
        let mut trainer = trainer.expect("a recipe");
        let loss = trainer.step(0, &stays).expect("stays");
        (loss, values(trainer.network.model.proj1.weight.val()))
    };
    let (large, small) = (run(6, 1), run(4, 2));
    assert!((large.0 - small.0).abs() < 1e-5);
    assert_close(&small.1, &large.1, 2e-5);
}

#[test]
fn several_labels_are_learnt_together() {
    let device = devices()[0].clone();
    let config = small().with_task(Task::Multilabel).with_classes(Some(3));
    let label = |stay: Stay| Stay { labels: vec![stay.labels[0], 1 - stay.labels[0], 1], ..stay };
    let stays: Vec<Stay> = stays(16).into_iter().map(label).collect();
    let stays: Vec<&Stay> = stays.iter().collect();
    let recipe = EhrTrainingConfig::new().with_learning_rate(3e-3).with_accumulation(4).with_epochs(12);
    let fitted = trainer(&config, recipe, &device).fit(&stays, &stays, &mut StdRng::seed_from_u64(2), |_| {});
    let (network, history) = fitted.expect("stays");
    assert!(history[11].loss < history[0].loss);
    let answers = network.answers(&stays, &loader(&config), 8, &device).expect("stays");
    assert_eq!((answers.len(), answers[0].len()), (16, 3));
    assert!(F1Score::macro_mean(&answers, 0.5) > 0.9);
}
