//! Every parameter to its optimiser, in training and through files.

use burn::lr_scheduler::LrScheduler;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use gatekit_core::checkpoint::named_parameters;
use gatekit_experts::sqrtgate::{
    HyperPConfig, MuonHConfig, SphereGroup, SphereOptimizer, SphereOptimizerConfig, frobenius_norm,
};

use super::*;

pub fn config() -> SphereOptimizerConfig {
    SphereOptimizerConfig::new().with_heads(vec!["head".into()]).with_embeddings(vec!["embed".into()])
}

pub fn optimizer(model: &Model) -> SphereOptimizer {
    config().try_init(model).unwrap()
}

#[test]
fn parameters_go_where_they_belong() {
    let model = Model::new(&Device::flex());
    let optimizer = optimizer(&model);
    let groups: Vec<(&str, SphereGroup)> =
        optimizer.groups().iter().map(|(path, group)| (path.as_str(), *group)).collect();
    let want = [
        ("embed.weight", SphereGroup::Adam),
        ("head.weight", SphereGroup::AdamH),
        ("moe.experts.down_proj", SphereGroup::MuonH),
        ("moe.experts.gate_up_proj", SphereGroup::MuonH),
        ("moe.router.weight", SphereGroup::MuonH),
        ("moe.shared.down_proj", SphereGroup::MuonH),
        ("moe.shared.gate_up_proj", SphereGroup::MuonH),
        ("norm.weight", SphereGroup::Adam),
    ];
    assert_eq!(groups, want);
    assert_eq!(optimizer.group("norm.bias"), None);
}

#[test]
fn training_lowers_the_loss_and_keeps_every_norm() {
    for device in devices() {
        let mut model = Model::new(&device);
        let norms = |model: &Model| {
            let mut norms = values(frobenius_norm(model.moe.experts.gate_up_proj.val(), true));
            norms.extend(values(frobenius_norm(model.moe.experts.down_proj.val(), true)));
            norms.extend(values(frobenius_norm(model.head.weight.val(), true)));
            norms
        };
        let fit = |model: &Model| values(model.fit().0)[0];
        let (before, embedding, first) = (norms(&model), model.embed.weight.val(), fit(&model));
        let mut optimizer = optimizer(&model);
        for _ in 0..40 {
            let gradients = model.gradients();
            let (next, skipped) = optimizer.step(0.02, model, gradients).unwrap();
            assert!(skipped.is_empty());
            model = next;
        }
        assert_close(&norms(&model), &before, 1e-5);
        assert!(fit(&model) < 0.5 * first, "{} after {first}", fit(&model));
        assert_ne!(values(model.embed.weight.val()), values(embedding));
    }
}

#[test]
fn the_state_survives_a_file() {
    for device in devices() {
        let mut model = Model::new(&device);
        let mut first = optimizer(&model);
        for _ in 0..3 {
            let gradients = model.gradients();
            model = first.step(0.05, model, gradients).unwrap().0;
        }
        let bytes = first.to_record().into_bytes().unwrap();
        let mut second = optimizer(&model).load_record(OptimizerRecord::from_bytes(bytes).unwrap());
        let mut fresh = optimizer(&model);
        let step = |optimizer: &mut SphereOptimizer| {
            let next = optimizer.step(0.05, model.clone(), model.gradients()).unwrap().0;
            named_parameters(&next)
        };
        let (went_on, resumed, began) = (step(&mut first), step(&mut second), step(&mut fresh));
        for (name, data) in &went_on {
            let [a, b] = [data, &resumed[name]].map(|data| data.iter::<f64>().collect::<Vec<_>>());
            assert_close(&b, &a, 1e-6);
        }
        assert_ne!(went_on["moe.router.weight"], began["moe.router.weight"], "the state matters");
    }
}

#[test]
fn it_is_an_optimiser_of_burn_with_a_schedule_of_burn() {
    let device = Device::flex();
    let mut model = Model::new(&device);
    let mut optimizer: ModuleOptimizer = optimizer(&model).into_module_optimizer();
    let rules = HyperPConfig::new(2, 1e6, 1e3, 10).with_warmup_iters(2).try_init().unwrap();
    let mut scheduler = burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler::new(rules.scheduler());
    let before = named_parameters(&model);
    // The first rate is that of a warm-up from 0.
    let gradients = model.gradients();
    model = optimizer.step(scheduler.step(), model, gradients);
    let after = named_parameters(&model);
    let [a, b] = [&before, &after].map(|named| named["head.weight"].iter::<f64>().collect::<Vec<_>>());
    assert_close(&a, &b, 1e-6);
    let gradients = model.gradients();
    model = optimizer.step(scheduler.step(), model, gradients);
    assert_ne!(named_parameters(&model)["head.weight"], after["head.weight"]);

    let record = scheduler.to_record();
    let mut resumed = burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler::new(rules.scheduler())
        .load_record(record);
    assert_eq!(resumed.step().base(), rules.lr(2));
    let mut plain = rules.scheduler();
    assert_eq!([plain.step(), plain.step()], [0.0, 0.5 * rules.peak_lr()]);
}

#[test]
fn a_module_of_matrices_needs_no_lists() {
    let device = Device::flex().autodiff();
    let mut layer = LinearConfig::new(4, 3).with_bias(false).init(&device);
    let mut optimizer = MuonHConfig::new().init();
    let x = wave([5, 4], 1.0, &device);
    let loss = |layer: &Linear| layer.forward(x.clone()).square().mean();
    let (first, norm) = (values(loss(&layer))[0], values(frobenius_norm(layer.weight.val(), true)));
    for _ in 0..30 {
        let gradients = GradientsParams::from_grads(loss(&layer).backward(), &layer);
        layer = optimizer.step(0.05, layer, gradients);
    }
    assert!(values(loss(&layer))[0] < 0.7 * first);
    assert_close(&values(frobenius_norm(layer.weight.val(), true)), &norm, 1e-5);
    assert!(!optimizer.to_record().is_empty());
}
