//! Bad input.

use burn::config::Config;
use burn::tensor::Tensor;
use gatekit_core::ModuleConfig;
use gatekit_core::linalg::Matrix;
use gatekit_experts::mixer_experts::{
    AdaptationConfig, KMeansGateUpdate, MetaLearner, MixerError, MixerFieldConfig, MixerTrainer,
    MixerTrainingConfig, Rk4, adapt,
};

use crate::{devices, lively, small};

#[test]
fn fields_that_cannot_be_are_refused() {
    let [_, device] = devices();
    for (config, field) in [
        (MixerFieldConfig::new(3, 7), "context_size"),
        (MixerFieldConfig::new(3, 0), "context_size"),
        (MixerFieldConfig::new(0, 6), "num_experts"),
        (MixerFieldConfig::new(3, 6).with_depth(1), "depth"),
        (MixerFieldConfig::new(3, 6).with_width(0), "width"),
        (MixerFieldConfig::new(3, 6).with_data_size(0), "data_size"),
    ] {
        assert_eq!(config.try_init(&device).unwrap_err().field, field);
    }
    // Without splitting any size will do.
    assert!(MixerFieldConfig::new(3, 7).with_split_context(false).try_init(&device).is_ok());
    let text = r#"{"num_experts": 2, "context_size": 4, "meta_learner": "ncf"}"#;
    assert!(MixerFieldConfig::load_binary(text.as_bytes()).is_err());
}

#[test]
fn trainings_that_cannot_be_are_refused() {
    let good = || MixerTrainingConfig::new(5, 0.1);
    assert!(good().check().is_ok());
    for (config, field) in [
        (MixerTrainingConfig::new(5, 0.0), "dt"),
        (MixerTrainingConfig::new(5, -1.0), "dt"),
        (MixerTrainingConfig::new(0, 0.1), "steps"),
        (good().with_noise_level(-1e-4), "noise_level"),
        (good().with_convergence_tol(f64::NAN), "convergence_tol"),
        (good().with_max_kmeans(0), "max_kmeans"),
        (good().with_proximal_beta(-1.0), "proximal_beta"),
        (good().with_learning_rate(0.0), "learning_rate"),
        (good().with_loss_contributors(0), "loss_contributors"),
        (good().with_gate_update_every(0), "gate_update_every"),
    ] {
        assert_eq!(config.check().unwrap_err().field, field);
    }
}

#[test]
fn data_that_cannot_be_learned_from_is_refused_at_the_start() {
    let [_, device] = devices();
    let refused = |observed: Tensor<4>| {
        let config = MixerTrainingConfig::new(2, 0.1);
        let field = lively(&small(3, MetaLearner::Geps), &device);
        let Err(MixerError::Input(error)) = MixerTrainer::new(field, observed, &config, &device) else {
            panic!("the data is refused");
        };
        error.to_string()
    };
    // Some cluster would always be empty.
    assert!(refused(Tensor::zeros([2, 1, 3, 2], &device)).contains("at least 3"));
    assert!(refused(Tensor::zeros([3, 1, 4, 2], &device)).contains("[M, B, 3, D]"));
    assert!(refused(Tensor::zeros([3, 0, 3, 2], &device)).contains("[3, 0, 3, 2]"));
    assert!(refused(Tensor::full([3, 1, 3, 2], f32::NAN, &device)).contains("finite"));
}

#[test]
fn refits_of_other_shapes_are_refused() {
    let update = KMeansGateUpdate::new(1e-4, 20, 1e-4, true).unwrap();
    let (contexts, losses) = (Matrix::zeros(6, 4), Matrix::zeros(6, 2));
    let (centroids, noise) = (Matrix::zeros(2, 4), Matrix::zeros(6, 4));
    let field = |contexts: &Matrix, losses: &Matrix, centroids: &Matrix, noise: &Matrix| {
        update.update(contexts, losses, centroids, noise).unwrap_err().field
    };
    assert_eq!(field(&contexts, &losses, &Matrix::zeros(3, 4), &noise), "centroids");
    assert_eq!(field(&contexts, &losses, &Matrix::zeros(2, 3), &noise), "centroids");
    assert_eq!(field(&contexts, &Matrix::zeros(5, 2), &centroids, &noise), "losses");
    assert_eq!(field(&contexts, &losses, &centroids, &Matrix::zeros(6, 3)), "noise");
    let bad = Matrix::from_fn(6, 4, |row, _| if row == 2 { f64::NAN } else { 0.0 });
    assert_eq!(field(&bad, &losses, &centroids, &noise), "contexts");
    assert_eq!(KMeansGateUpdate::new(-1.0, 20, 1e-4, true).unwrap_err().field, "noise_level");
}

#[test]
fn a_diverged_training_says_so() {
    let [_, device] = devices();
    // States so large that every rollout overflows.
    let observed = Tensor::full([4, 1, 3, 2], 1e30, &device);
    let field = lively(&small(2, MetaLearner::Geps), &device);
    let config = MixerTrainingConfig::new(2, 0.1).with_context_steps(2).with_model_steps(1);
    let mut trainer = MixerTrainer::new(field, observed, &config, &device).unwrap();
    // Contexts stay 0, so clusters are empty and training goes on, without a step that was taken.
    let step = trainer.outer_step().unwrap();
    assert_eq!((step.skipped, step.gate.empty), (3, 3));
    assert!(step.model_loss.is_nan());
}

#[test]
fn adaptations_that_cannot_be_are_refused() {
    let [_, device] = devices();
    let field = lively(&small(2, MetaLearner::Coda), &device);
    let solver = Rk4::new(2, 0.1).unwrap();
    let refused = |observed: Tensor<4>, rate: f64| {
        let config = AdaptationConfig { steps: 1, learning_rate: rate };
        adapt(&field, observed, &solver, &config, &device).unwrap_err()
    };
    assert!(matches!(refused(Tensor::zeros([1, 1, 3, 2], &device), 0.0), MixerError::Config(_)));
    assert!(matches!(refused(Tensor::zeros([0, 1, 3, 2], &device), 1e-3), MixerError::Input(_)));
    assert!(matches!(refused(Tensor::zeros([1, 1, 0, 2], &device), 1e-3), MixerError::Input(_)));
}

#[test]
#[should_panic(expected = "contexts of 5, need 6")]
fn contexts_of_another_width_are_a_mistake() {
    let [_, device] = devices();
    lively(&small(3, MetaLearner::Geps), &device).bind(Tensor::zeros([2, 5], &device));
}
