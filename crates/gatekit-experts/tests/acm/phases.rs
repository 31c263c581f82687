//! From a dense model to one of modules, phase by phase.

use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use gatekit_core::ModuleConfig;
use gatekit_core::mlp::MlpConfig;
use gatekit_core::router::Phase;
use gatekit_experts::acm::{
    Acm, AcmBlock, AcmGateConfig, AcmMode, AcmObjective, Acmize, AcmizeConfig, DenseBlock, DenseBlockConfig,
    HasAcms, Recorded, distillation_loss, gate_pretraining_loss, stack_gates,
};

use super::{close, devices, integers, values, waves};

fn dense(device: &Device) -> Vec<DenseBlock> {
    let config = DenseBlockConfig::new(8, 32).with_num_heads(2);
    (0..2).map(|_| config.init(device)).collect()
}

fn recorded(model: &Vec<DenseBlock>, x: Tensor<3>) -> (Tensor<3>, Vec<Recorded>) {
    let mut records = Vec::new();
    (model.record(x, &mut records), records)
}

/// Some steps of Adam; the losses before each.
fn fit<M: Module>(
    mut model: M,
    rate: f64,
    steps: usize,
    mut loss: impl FnMut(&M) -> Tensor<1>,
) -> (M, Vec<f64>) {
    let mut adam = AdamConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = loss(&model);
        losses.push(values(loss.clone())[0]);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = adam.step(ModuleLearningRate::from(rate), model, gradients);
    }
    (model, losses)
}

#[test]
fn records_are_the_models_own_activations() {
    for device in devices() {
        let model = dense(&device);
        let x = waves([2, 5, 8], 0.3, &device);
        let (y, records) = recorded(&model, x.clone());
        let expected = model.iter().fold(x, |x, block| block.forward(x));
        assert_eq!(values(y), values(expected));
        assert_eq!(records.len(), 10);
        // Queries, keys and values see the same; the projection behind the heads adds to the residual stream.
        assert_eq!(values(records[0].input.clone()), values(records[2].input.clone()));
        let again = model[0].mlp.forward(records[4].input.clone());
        assert_eq!(values(again), values(records[4].output.clone()));
    }
}

#[test]
fn the_three_phases_train_what_they_should() {
    for device in devices() {
        device.seed(5);
        let autodiff = device.clone().autodiff();
        let teacher = dense(&autodiff);
        let model: Vec<AcmBlock> =
            teacher.acmize(&AcmizeConfig::new().with_num_blocks(2), &autodiff).unwrap();
        assert_eq!(model.acms().len(), 10);
        assert_eq!(values(model[0].ln_1.gamma.val()), values(teacher[0].ln_1.gamma.val()));
        let x = waves([4, 6, 8], 0.2, &autodiff);
        let (y, records) = recorded(&teacher, x.clone());

        let gate =
            |model: &Vec<AcmBlock>| values(model[0].mlp.gating_network.as_ref().unwrap().net[0].weight.val());
        let learners = |model: &Vec<AcmBlock>| values(model[1].self_attention.k_proj.learners.w1.val());
        let (before_gate, before) = (gate(&model), learners(&model));
        let (model, losses) =
            fit(model, 1e-2, 60, |model| distillation_loss(&model.acms(), &records).unwrap());
        assert!(losses[59] < 0.6 * losses[0], "{losses:?}");
        assert_eq!(gate(&model), before_gate, "phase 1 leaves the gates");
        assert_ne!(learners(&model), before);

        let before = learners(&model);
        let (model, losses) = fit(model, 1e-2, 60, |model| {
            gate_pretraining_loss(&model.acms(), &records, 1.2, Phase::Inference).unwrap()
        });
        assert!(losses[59] < 0.9 * losses[0], "{losses:?}");
        assert_eq!(learners(&model), before, "phase 2 leaves the learners");
        assert_ne!(gate(&model), before_gate);

        let objective = AcmObjective::new(0.3).with_budget_weight(2.0);
        let costs: Vec<f64> = model.acms().into_iter().map(|acm| acm.cost().learner).collect();
        let mut shares = Vec::new();
        let (model, losses) = fit(model, 1e-2, 60, |model| {
            let (mut out, mut gates) = (x.clone(), Vec::new());
            for block in model {
                let block = block.forward(out, AcmMode::Gated).unwrap();
                out = block.y;
                gates.extend(block.gates);
            }
            let task = (out - y.clone().detach()).powi_scalar(2).mean();
            let losses = objective.losses(task, stack_gates(&gates).unwrap(), &costs).unwrap();
            shares.push(values(losses.compute_share.clone())[0]);
            losses.total
        });
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        assert!(mean(&losses[50..]) < mean(&losses[..10]), "{losses:?}");
        let gap = |shares: &[f64]| (mean(shares) - 0.3).abs();
        assert!(gap(&shares[50..]) < 0.5 * gap(&shares[..5]), "{shares:?}");
        let out = model.valid()[0].forward(waves([1, 6, 8], 0.2, &device), AcmMode::Gated).unwrap();
        assert!(integers(out.choices).iter().all(|choice| (0..=2).contains(choice)));
    }
}

#[test]
fn many_learners_imitate_a_projection_exactly() {
    // Of full rank together, with a bias: the last partial sum can be what is replaced.
    for device in devices() {
        device.seed(2);
        let autodiff = device.clone().autodiff();
        let layer = LinearConfig::new(4, 4).with_bias(false).init(&autodiff);
        let acm: Acm = layer.acmize(&AcmizeConfig::new().with_num_blocks(1), &autodiff).unwrap();
        assert_eq!(acm.learners.block_dim(), 2);
        let mut records = Vec::new();
        layer.record(waves([1, 8, 4], 0.5, &autodiff), &mut records);
        let (_, losses) = fit(acm, 2e-2, 120, |acm| distillation_loss(&acm.acms(), &records).unwrap());
        assert!(losses[119] < losses[0], "{} {}", losses[0], losses[119]);
    }
}

#[test]
fn gates_can_come_later() {
    for device in devices() {
        let mlp = MlpConfig::new(6, 12).init(&device);
        let mut bare = mlp.acmize(&AcmizeConfig::new().with_num_blocks(3), &device).unwrap();
        assert_eq!((bare.learners.block_dim(), bare.learners.num_blocks()), (4, 3));
        bare.gating_network = None;
        let x = waves([1, 4, 6], 0.1, &device);
        let refused = bare.forward(x.clone(), AcmMode::Gated).unwrap_err();
        assert_eq!(refused.field, "mode");
        let all = values(bare.forward(x.clone(), AcmMode::All).unwrap().y);
        let gate = AcmGateConfig::new(6).with_num_blocks(3).with_min_choice(3);
        assert_eq!(bare.clone().add_gate(&AcmGateConfig::new(6)).unwrap_err().field, "num_blocks");
        let gated = bare.add_gate(&gate).unwrap();
        close(&values(gated.forward(x, AcmMode::Gated).unwrap().y), &all, 1e-6);
    }
}
