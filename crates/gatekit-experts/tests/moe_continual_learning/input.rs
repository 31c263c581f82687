//! Bad input.

use burn::tensor::Tensor;
use gatekit_core::linalg::Matrix;
use gatekit_core::{ConfigError, InputError, ModuleConfig};
use gatekit_experts::moe_continual_learning::{
    ContinualMoeConfig, CumulativeLoadLoss, ErrorLedger, ExpectedErrorsConfig, MinNormExperts,
    SyntheticTasksConfig, Variant,
};

use crate::{after_rounds, devices, values};

fn config_error(config: &ContinualMoeConfig) -> ConfigError {
    config.try_init(&devices()[1]).unwrap_err()
}

#[test]
fn configurations_that_describe_nothing_are_refused() {
    let good = || ContinualMoeConfig::new(10, 3);
    let cases = [
        (ContinualMoeConfig::new(10, 0), "num_experts"),
        (ContinualMoeConfig::new(0, 3), "input_dim"),
        (good().with_aux_weight(-0.1), "aux_weight"),
        (good().with_noise_bound(-0.1), "noise_bound"),
        (good().with_gap_threshold(-0.1), "gap_threshold"),
        (good().with_learning_rate(0.0), "learning_rate"),
        (good().with_learning_rate(f64::NAN), "learning_rate"),
    ];
    for (config, field) in cases {
        assert_eq!(config_error(&config).field, field);
    }
    assert_eq!(CumulativeLoadLoss::new(-1.0).unwrap_err().field, "aux_weight");
    assert_eq!("paper".parse::<Variant>().unwrap_err().field, "variant");
    assert_eq!("simulation".parse::<Variant>(), Ok(Variant::Simulation));
    let truth = Matrix::zeros(2, 10);
    let expected = |config: ExpectedErrorsConfig| config.try_init(&truth).unwrap_err();
    let error = expected(ExpectedErrorsConfig::new(10, 10));
    assert!(error.field == "samples" && error.to_string().contains("10"), "{error}");
    assert_eq!(expected(ExpectedErrorsConfig::new(9, 3)).field, "input_dim");
    assert_eq!(expected(ExpectedErrorsConfig::new(10, 3).with_num_experts(0)).field, "num_experts");
    let world = SyntheticTasksConfig::new;
    for (config, field) in [
        (world().with_num_clusters(7), "num_clusters"),
        (world().with_samples(10), "samples"),
        (world().with_samples(4), "samples"),
        (world().with_scale(0.0), "scale"),
        (world().with_num_tasks(0), "num_tasks"),
    ] {
        assert_eq!(config.try_init().unwrap_err().field, field);
    }
}

#[test]
fn data_that_cannot_be_used_is_refused_and_changes_nothing() {
    for device in devices() {
        let config = ContinualMoeConfig::new(4, 2);
        let mut model = config.init(&device);
        let zero = || Tensor::<1>::zeros([2], &device);
        let mut refused = |x: Tensor<2>, noise: Tensor<1>| -> InputError {
            let samples = x.dims()[0];
            let error = model.round(x, Tensor::ones([samples], &device), noise).unwrap_err();
            assert_eq!(model.rounds(), 0);
            assert!(values(&model.experts.experts.val()).iter().all(|weight| *weight == 0.0));
            assert!(values(&model.router.counts.val()).iter().all(|count| *count == 0.0));
            error
        };
        let error = refused(Tensor::ones([4, 4], &device), zero());
        assert!(error.to_string().contains("4 samples of 4 dimensions"), "{error}");
        let error = refused(Tensor::ones([2, 4], &device), zero());
        assert!(error.field == "x" && error.to_string().contains("fewer samples"), "{error}");
        let row = || Tensor::<2>::from_data([[1.0f32, 0.0, 2.0, 0.0]], &device);
        assert_eq!(refused(row().mul_scalar(f32::NAN), zero()).field, "x");
        assert_eq!(refused(row(), Tensor::full([2], 0.5, &device)).field, "noise");
        let mut experts = MinNormExperts::new(2, 4, &device);
        assert_eq!(experts.fit(2, &row(), &Tensor::ones([1], &device)).unwrap_err().field, "expert");
    }
}

#[test]
fn restored_states_must_add_up() {
    let [_, device] = devices();
    let config = ContinualMoeConfig::new(10, 3);
    let model = || after_rounds(&config, 5, &device);
    assert!(model().resume(6, &[false; 3], None).is_ok());
    assert_eq!(model().resume(7, &[false; 3], None).unwrap_err().field, "counts");
    assert_eq!(model().resume(0, &[false; 3], None).unwrap_err().field, "round");
    assert_eq!(model().resume(6, &[false; 2], None).unwrap_err().field, "converged");
    assert_eq!(model().resume(6, &[true; 3], Some(6)).unwrap_err().field, "stopped_at");
    let mut broken = model();
    broken.router.counts = broken.router.counts.map(|counts| counts.add_scalar(0.5));
    assert_eq!(broken.resume(6, &[false; 3], None).unwrap_err().field, "counts");
}

#[test]
fn runs_that_are_none_are_refused() {
    let expected =
        ExpectedErrorsConfig::new(10, 6).with_num_experts(2).try_init(&Matrix::zeros(3, 10)).unwrap();
    let refused = |tasks: &[usize], chosen: &[usize]| expected.run(tasks, chosen).unwrap_err().field;
    assert_eq!(refused(&[], &[]), "tasks");
    assert_eq!(refused(&[0, 3], &[0, 0]), "tasks");
    assert_eq!(refused(&[0, 1], &[0, 2]), "chosen");
    assert_eq!(refused(&[0, 1], &[0]), "chosen");
    assert_eq!(expected.single_forgetting(0).unwrap_err().field, "rounds");
    assert_eq!(expected.single_generalization(0).unwrap_err().field, "rounds");
    let mut ledger = ErrorLedger::new(2, 3);
    assert_eq!(ledger.record(3, 0, &Matrix::zeros(2, 3)).unwrap_err().field, "tasks");
    assert_eq!(ledger.record(0, 2, &Matrix::zeros(2, 3)).unwrap_err().field, "chosen");
    assert!(ledger.fresh().is_empty());
}
