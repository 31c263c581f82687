//! The field against a loop over environments, trajectories and numbers.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use gatekit_core::ModuleConfig;
use gatekit_core::checkpoint::named_parameters;
use gatekit_core::linalg::Matrix;
use gatekit_experts::mixer_experts::{
    ContextGate, GepsField, MetaExpert, MetaLearner, MixerExpert, MixerField, MixerFieldConfig, RootNetwork,
    VectorField,
};

use crate::{close, devices, drawn, lively, small, tensor, values};

/// Weight `[out, in]`, bias and slope of every layer of one environment.
type Layers = Vec<(Matrix, Vec<f64>, Option<f64>)>;

fn host(param: &Param<Tensor<2>>) -> Matrix {
    Matrix::of(&param.val())
}

fn root(root: &RootNetwork) -> Layers {
    let layers = root.layers.iter().enumerate().map(|(index, layer)| {
        let slope = root.betas.get(index).map(|beta| values(&beta.val())[0]);
        (host(&layer.weight), values(&layer.bias.val()), slope)
    });
    layers.collect()
}

/// `W + A diag(c) B`, number by number.
fn moved_geps(expert: &GepsField, context: &[f64]) -> Layers {
    let mut layers = root(&expert.root);
    for (index, (weight, bias, slope)) in layers.iter_mut().enumerate() {
        let (a, b) = (host(&expert.left.layers[index].weight), host(&expert.right.layers[index].weight));
        let a_bias = host(&expert.left.layers[index].bias);
        for (k, c) in context.iter().enumerate() {
            for row in 0..weight.rows() {
                bias[row] += a_bias[[row, k]] * c;
                for column in 0..weight.columns() {
                    weight[[row, column]] += a[[row, k]] * c * b[[k, column]];
                }
            }
            if let Some(slope) = slope {
                *slope += host(&expert.left.betas[index])[[0, k]] * c;
            }
        }
    }
    layers
}

fn moved(expert: &MixerExpert, context: &[f64]) -> Layers {
    let shift = match expert {
        MixerExpert::Geps(expert) => &expert.ctx_shift,
        MixerExpert::Coda(expert) => &expert.ctx_shift,
    };
    let shift = shift.as_ref().map_or(0.0, |shift| values(&shift.val())[0]);
    let context: Vec<f64> = context.iter().map(|c| c + shift).collect();
    let expert = match expert {
        MixerExpert::Geps(expert) => return moved_geps(expert, &context),
        MixerExpert::Coda(expert) => expert,
    };
    let hyper = host(&expert.hyper.weight);
    let mut moves =
        (0..hyper.rows()).map(|row| -> f64 { hyper.row(row).iter().zip(&context).map(|(h, c)| h * c).sum() });
    let mut layers = root(&expert.root);
    for (weight, bias, slope) in &mut layers {
        for row in 0..weight.rows() {
            weight.row_mut(row).iter_mut().zip(&mut moves).for_each(|(weight, by)| *weight += by);
        }
        bias.iter_mut().zip(&mut moves).for_each(|(bias, by)| *bias += by);
        slope.iter_mut().zip(&mut moves).for_each(|(slope, by)| *slope += by);
    }
    assert!(moves.next().is_none(), "all weights are moved");
    layers
}

fn velocity(layers: &Layers, y: &[f64]) -> Vec<f64> {
    layers.iter().fold(y.to_vec(), |y, (weight, bias, slope)| {
        let u = (0..weight.rows())
            .map(|row| bias[row] + weight.row(row).iter().zip(&y).map(|(w, y)| w * y).sum::<f64>());
        u.map(|u| slope.map_or(u, |slope| u / (1.0 + (-slope * u).exp()))).collect()
    })
}

fn piece<'a>(config: &MixerFieldConfig, context: &'a [f64], expert: usize) -> &'a [f64] {
    let size = config.expert_context();
    if config.split_context { &context[expert * size..(expert + 1) * size] } else { context }
}

fn configurations() -> Vec<MixerFieldConfig> {
    let mut all = Vec::new();
    for learner in [MetaLearner::Geps, MetaLearner::Coda] {
        all.push(small(3, learner));
        all.push(small(2, learner).with_split_context(false).with_depth(2).with_data_size(3));
        all.push(small(4, learner).with_shift_context(false).with_use_gate_bias(false).with_data_size(1));
        all.push(small(1, learner).with_width(1).with_depth(4));
    }
    all
}

#[test]
fn every_environment_gets_its_expert_with_its_weights() {
    for device in devices() {
        for config in configurations() {
            let field = lively(&config, &device);
            let (environments, batch, size) = (7, 3, config.data_size);
            let contexts = drawn([environments, config.context_size], &device).mul_scalar(1.5);
            let y = drawn([environments, batch, size], &device);
            let (dy, choice) = field.forward(y.clone(), contexts.clone());
            let choice: Vec<usize> = choice.into_data().iter::<i64>().map(|expert| expert as usize).collect();
            let probabilities = Matrix::of(&field.gate.probabilities(contexts.clone()));
            let (contexts, y) = (Matrix::of(&contexts), values(&y));
            let mut want = Vec::new();
            for (environment, expert) in choice.iter().enumerate() {
                let best = probabilities.row(environment).iter().copied().fold(0.0, f64::max);
                assert_eq!(probabilities[[environment, *expert]], best);
                let context = piece(&config, contexts.row(environment), *expert);
                let layers = moved(&field.experts[*expert], context);
                for trajectory in 0..batch {
                    let start = (environment * batch + trajectory) * size;
                    want.extend(velocity(&layers, &y[start..start + size]));
                }
            }
            close(&values(&dy), &want, 2e-5);
        }
    }
}

#[test]
fn the_soft_mixture_weighs_all_experts() {
    for device in devices() {
        let config = small(3, MetaLearner::Geps);
        let field = lively(&config, &device);
        let (contexts, y) = (drawn([4, 6], &device), drawn([4, 2, 2], &device));
        let got = values(&field.bind_soft(contexts.clone()).velocity(y.clone()));
        let probabilities = Matrix::of(&field.gate.probabilities(contexts.clone()));
        let (contexts, y) = (Matrix::of(&contexts), values(&y));
        let mut want = vec![0.0; got.len()];
        for environment in 0..4 {
            for expert in 0..3 {
                let context = piece(&config, contexts.row(environment), expert);
                let layers = moved(&field.experts[expert], context);
                for start in [4 * environment, 4 * environment + 2] {
                    for (offset, velocity) in velocity(&layers, &y[start..start + 2]).into_iter().enumerate()
                    {
                        want[start + offset] += probabilities[[environment, expert]] * velocity;
                    }
                }
            }
        }
        close(&got, &want, 2e-5);
    }
}

#[test]
fn one_expert_may_have_all_environments_and_there_may_be_none() {
    for device in devices() {
        let config = small(3, MetaLearner::Coda);
        let mut field = lively(&config, &device);
        // The bias alone decides, for expert 1.
        let mut gate = Matrix::zeros(7, 3);
        gate[[6, 1]] = 1.0;
        field.gate.set(&gate);
        let bound = field.bind(drawn([5, 6], &device));
        assert_eq!(bound.choice().experts(), [1; 5]);
        assert_eq!(bound.velocity(drawn([5, 1, 2], &device)).dims(), [5, 1, 2]);
        // A tie goes to the first.
        field.gate.set(&Matrix::zeros(7, 3));
        assert_eq!(field.bind(drawn([2, 6], &device)).choice().experts(), [0; 2]);
        let none = field.forward(Tensor::zeros([0, 4, 2], &device), Tensor::zeros([0, 6], &device));
        assert_eq!((none.0.dims(), none.1.dims()), ([0, 4, 2], [0]));
        let solver = gatekit_experts::mixer_experts::Rk4::new(3, 0.1).unwrap();
        let none = field
            .rollout(Tensor::zeros([0, 4, 2], &device), Tensor::zeros([0, 6], &device), &solver)
            .unwrap();
        assert_eq!(none.dims(), [0, 4, 4, 2]);
    }
}

#[test]
fn neither_gate_nor_other_pieces_take_a_gradient() {
    let [_, device] = devices();
    let device = device.autodiff();
    let field = lively(&small(3, MetaLearner::Geps), &device);
    let contexts = drawn([4, 6], &device).require_grad();
    let bound = field.bind(contexts.clone());
    let gradients = bound.velocity(drawn([4, 2, 2], &device)).sum().backward();
    assert!(field.gate.gate.val().grad(&gradients).is_none());
    let gradient = Matrix::of(&contexts.grad(&gradients).unwrap());
    for (environment, expert) in bound.choice().experts().iter().enumerate() {
        for (place, value) in gradient.row(environment).iter().enumerate() {
            assert_eq!(*value != 0.0, place / 2 == *expert, "environment {environment}, number {place}");
        }
    }
}

#[test]
fn the_losses_of_every_expert_are_those_of_its_own_rollouts() {
    for device in devices() {
        let config = small(3, MetaLearner::Geps);
        let mut field = lively(&config, &device);
        let (contexts, observed) = (drawn([4, 6], &device), drawn([4, 2, 4, 2], &device));
        let solver = gatekit_experts::mixer_experts::Rk4::new(3, 0.1).unwrap();
        let losses = field.expert_losses(contexts.clone(), observed.clone(), &solver);
        for expert in 0..3 {
            let mut gate = Matrix::zeros(7, 3);
            gate[[6, expert]] = 1.0;
            field.gate.set(&gate);
            let start = observed.clone().narrow(2, 0, 1).squeeze_dim::<3>(2);
            let trajectory = field.rollout(start, contexts.clone(), &solver).unwrap();
            let want = (trajectory - observed.clone()).square().flatten::<2>(1, 3).mean_dim(1);
            let got: Vec<f64> = (0..4).map(|environment| losses[[environment, expert]]).collect();
            close(&got, &values(&want), 1e-5);
        }
    }
}

#[test]
fn parameters_have_their_published_names() {
    let [_, device] = devices();
    let names = |learner| {
        let field = small(2, learner).with_data_size(2).init(&device);
        let layout = MixerField::<MixerExpert>::layout();
        let tensors = layout.to_published(named_parameters(&field));
        tensors.into_iter().map(|(name, data)| (name, data.shape().to_vec())).collect::<Vec<_>>()
    };
    let geps = names(MetaLearner::Geps);
    for (name, shape) in [
        ("gate", vec![5, 2]),
        ("experts.1.root.layers.0.weight", vec![5, 2]),
        ("experts.0.root.layers.2.bias", vec![2]),
        ("experts.0.root.betas.1", vec![1]),
        ("experts.0.left.layers.1.bias", vec![5, 2]),
        ("experts.1.left.betas.0", vec![1, 2]),
        ("experts.1.right.layers.2.weight", vec![2, 5]),
        ("experts.0.ctx_shift", vec![1]),
    ] {
        assert!(geps.contains(&(name.to_string(), shape)), "{name} in {geps:?}");
    }
    let weights = 5 * 2 + 5 + 1 + 5 * 5 + 5 + 1 + 2 * 5 + 2;
    assert!(names(MetaLearner::Coda).contains(&("experts.1.hyper.weight".into(), vec![weights, 2])));
}

/// An expert of one's own: `dy/dt = c y`.
#[derive(Module, Debug)]
struct Growth {
    rate: Param<Tensor<1>>,
}

#[derive(Clone, Debug)]
struct Rates(Tensor<2>);

impl VectorField for Rates {
    fn velocity(&self, y: Tensor<3>) -> Tensor<3> {
        y * self.0.clone().unsqueeze_dim(2)
    }
}

impl gatekit_experts::mixer_experts::StackedField for Rates {
    fn stack(parts: Vec<Self>) -> Self {
        Self(Tensor::cat(parts.into_iter().map(|part| part.0).collect(), 0))
    }
}

impl MetaExpert for Growth {
    type Adapted = Rates;

    fn context_size(&self) -> usize {
        1
    }

    fn adapt(&self, contexts: Tensor<2>) -> Rates {
        Rates(contexts * self.rate.val().unsqueeze_dim(0))
    }
}

#[test]
fn experts_of_ones_own_kind_are_mixed_alike() {
    let [_, device] = devices();
    let growth = |rate: f64| Growth { rate: Param::from_tensor(tensor(&[rate], [1], &device)) };
    let gate = ContextGate::new(2, 2, false, &device);
    let mut field = MixerField::from_experts(vec![growth(1.0), growth(10.0)], gate.clone(), true).unwrap();
    field.gate.set(&Matrix::new(2, 2, vec![1.0, 0.0, 0.0, 1.0]));
    let contexts = tensor(&[3.0, 2.0, 1.0, 4.0], [2, 2], &device);
    let (dy, choice) = field.forward(Tensor::ones([2, 1, 1], &device), contexts);
    assert_eq!(choice.into_data().iter::<i64>().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(values(&dy), [3.0, 40.0]);
    assert_eq!(
        MixerField::from_experts(vec![growth(1.0)], gate.clone(), true).unwrap_err().field,
        "num_experts"
    );
    let error = MixerField::from_experts(vec![growth(1.0), growth(1.0)], gate, false).unwrap_err();
    assert_eq!(error.field, "context_size");
}
