//! The dense teacher, the three phases, and what they are compared with.

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::core::router::Phase;
use gatekit::experts::acm::{
    AcmObjective, Acmize, AcmizeConfig, HasAcms, ModelCost, distillation_loss, gate_pretraining_loss,
    stack_gates,
};
use gatekit_examples::{ExampleError, Experiment, Training, progress, tasks, train};
use rand::rngs::StdRng;

use crate::shapes::{Picture, TOKENS, tensors};
use crate::timing::binomial;
use crate::vit::{AcmVit, Vit, right};

/// Learners of a module.
pub const LEARNERS: usize = 4;
/// Threshold of the gates' labels.
const ERROR_FACTOR: f64 = 1.2;

/// Steps of everything, and the pictures that judge.
pub struct Study {
    teacher: usize,
    distillation: usize,
    gates: usize,
    pub tuning: usize,
    batch: usize,
    pub tests: Vec<Picture>,
    device: Device,
    seed: u64,
}

impl Study {
    pub fn new(experiment: &Experiment, seed: u64, device: &Device) -> Self {
        let mut random = tasks::random(1_000_000 + seed);
        Self {
            teacher: experiment.steps(700, 4),
            distillation: experiment.steps(120, 3),
            gates: experiment.steps(50, 2),
            tuning: experiment.steps(180, 3),
            batch: experiment.steps(32, 4),
            tests: (0..experiment.steps(600, 24)).map(|_| Picture::draw(&mut random)).collect(),
            device: device.clone(),
            seed,
        }
    }

    fn batch(&self, random: &mut StdRng) -> (Tensor<3>, Tensor<1, Int>) {
        let pictures: Vec<_> = (0..self.batch).map(|_| Picture::draw(random)).collect();
        tensors(&pictures, &self.device.clone().autodiff())
    }

    fn training(&self, steps: usize, learning_rate: f64) -> Training {
        Training { steps, learning_rate, warmup: steps / 20, weight_decay: 0.0, clip: 1.0 }
    }

    /// A dense model that knows the task.
    pub fn teacher(&self) -> Result<Vit, ExampleError> {
        self.device.seed(self.seed);
        let training = Training { weight_decay: 0.01, ..self.training(self.teacher, 3e-3) };
        Ok(self.fit_dense(Vit::new(&self.device)?, &training, "dense model"))
    }

    /// A narrower model, trained for as many steps as the three phases take.
    pub fn pruned(&self, teacher: &Vit, share: f64) -> Vit {
        let steps = self.distillation + self.gates + self.tuning;
        self.fit_dense(teacher.pruned(share), &self.training(steps, 3e-3), &format!("pruned to {share}"))
    }

    fn fit_dense(&self, model: Vit, training: &Training, name: &str) -> Vit {
        let mut random = tasks::random(self.seed);
        let loss = CrossEntropyLossConfig::new().init(&self.device.clone().autodiff());
        let bar = progress(training.steps, name);
        train(model, training, &bar, |model, _| {
            let (patches, classes) = self.batch(&mut random);
            loss.forward(model.forward(patches), classes)
        })
        .0
    }

    /// Phases 1 and 2: learners imitate the teacher's modules, gates learn where more of them stop to help.
    pub fn prepared(&self, teacher: &Vit) -> Result<AcmVit, ExampleError> {
        // At this width the paper's gate of three maps would cost an eighth of the model.
        let config = AcmizeConfig::new().with_num_blocks(LEARNERS).with_gate_depth(1);
        let model = teacher.acmize(&config, &self.device)?;
        let teacher = teacher.clone().train();
        let mut random = tasks::random(self.seed + 1);
        let mut recorded = || {
            let mut records = Vec::new();
            teacher.record(self.batch(&mut random).0, &mut records);
            records
        };
        let bar = progress(self.distillation, "phase 1, learners");
        let (model, _) = train(model, &self.training(self.distillation, 3e-3), &bar, |model, _| {
            distillation_loss(&model.acms(), &recorded()).expect("one record a module")
        });
        let bar = progress(self.gates, "phase 2, gates");
        let (model, _) = train(model, &self.training(self.gates, 1e-2), &bar, |model, _| {
            gate_pretraining_loss(&model.acms(), &recorded(), ERROR_FACTOR, Phase::Training)
                .expect("one record a module, and gates")
        });
        Ok(model)
    }

    /// Phase 3: all together, within a budget; `spread` weighs entropy and diversity.
    pub fn tuned(&self, model: AcmVit, target: f64, spread: f64, name: &str) -> Result<AcmVit, ExampleError> {
        let objective = AcmObjective::new(target)
            // The paper's 0.1 has 97 epochs to act; here there are hundreds of steps.
            .with_budget_weight(2.0)
            .with_entropy_weight(spread)
            .with_diversity_weight(spread);
        objective.check()?;
        let costs = model.cost().learner_costs();
        let mut random = tasks::random(self.seed + 2);
        let loss = CrossEntropyLossConfig::new().init(&self.device.clone().autodiff());
        let bar = progress(self.tuning, name);
        let (model, _) = train(model, &self.training(self.tuning, 3e-3), &bar, |model, _| {
            let (patches, classes) = self.batch(&mut random);
            let out = model.forward(patches).expect("gates are there");
            let gates = stack_gates(&out.gates).expect("all modules have as many learners");
            let task = loss.forward(out.logits, classes);
            objective.losses(task, gates, &costs).expect("a cost a module").total
        });
        Ok(model)
    }

    /// The same start and steps with choices by chance, of the budget on average.
    pub fn tuned_by_chance(&self, model: AcmVit, target: f64, name: &str) -> AcmVit {
        let mut random = tasks::random(self.seed + 2);
        let mut chance = tasks::random(self.seed + 3);
        let loss = CrossEntropyLossConfig::new().init(&self.device.clone().autodiff());
        let bar = progress(self.tuning, name);
        let training = self.training(self.tuning, 3e-3);
        train(model, &training, &bar, |model, _| {
            let (patches, classes) = self.batch(&mut random);
            let choices = by_chance(model, self.batch, target, &mut chance, &self.device.clone().autodiff());
            let out = model.forward_given(patches, &choices).expect("choices that there are");
            loss.forward(out.logits, classes)
        })
        .0
    }

    /// Which test pictures a dense model gets right.
    pub fn judge_dense(&self, model: &Vit) -> Result<Vec<bool>, ExampleError> {
        let (patches, classes) = tensors(&self.tests, &self.device);
        right(model.forward(patches), classes)
    }

    /// What a model of modules does with the test pictures; `chance` decides instead of the gates where it is given.
    pub fn judge(&self, model: &AcmVit, chance: Option<f64>) -> Result<Judgement, ExampleError> {
        let (patches, classes) = tensors(&self.tests, &self.device);
        let mut cost = model.cost();
        let out = match chance {
            None => model.forward(patches)?,
            Some(target) => {
                // Chance needs no gate.
                cost.modules.iter_mut().for_each(|module| module.gate = 0.0);
                let mut random = tasks::random(2_000_000 + self.seed);
                let choices = by_chance(model, self.tests.len(), target, &mut random, &self.device);
                model.forward_given(patches, &choices)?
            }
        };
        let modules = model.acms().len();
        let choices: Vec<usize> =
            out.choices.into_data().iter::<i64>().map(|choice| choice as usize).collect();
        Ok(Judgement { right: right(out.logits, classes)?, choices, modules, cost })
    }
}

/// Choices `[batch, TOKENS, modules]` by chance: the fewest that are allowed and a binomial number of further learners,
/// the budget on average.
fn by_chance(
    model: &AcmVit,
    batch: usize,
    target: f64,
    random: &mut StdRng,
    device: &Device,
) -> Tensor<3, Int> {
    let acms = model.acms();
    let shape = [batch, TOKENS, acms.len()];
    let mut choices = Vec::with_capacity(shape.iter().product());
    for _ in 0..batch * TOKENS {
        for acm in &acms {
            let fewest = acm.gating_network.as_ref().map_or(0, |gate| gate.min_choice());
            let more = (target * LEARNERS as f64 - fewest as f64) / (LEARNERS - fewest) as f64;
            choices.push(fewest as i64 + binomial(LEARNERS - fewest, more.clamp(0.0, 1.0), random));
        }
    }
    Tensor::from_data(TensorData::new(choices, shape), device)
}

/// What a model did with the test pictures.
pub struct Judgement {
    /// Which it got right.
    pub right: Vec<bool>,
    /// Learners by picture, token and module.
    choices: Vec<usize>,
    pub modules: usize,
    cost: ModelCost,
}

impl Judgement {
    /// Of a model without modules.
    pub fn of(right: Vec<bool>) -> Self {
        let cost = ModelCost { rest: 0.0, tokens: TOKENS, modules: Vec::new() };
        Self { right, choices: Vec::new(), modules: 0, cost }
    }

    /// Share of right answers among pictures with so many strokes of clutter.
    pub fn accuracy(&self, tests: &[Picture], clutter: std::ops::RangeInclusive<usize>) -> f64 {
        let asked = tests.iter().zip(&self.right).filter(|(picture, _)| clutter.contains(&picture.clutter));
        let (right, count) =
            asked.fold((0, 0), |(right, count), (_, yes)| (right + usize::from(*yes), count + 1));
        right as f64 / f64::from(count.max(1))
    }

    /// Mean learners of every module over the tokens that `which` (picture, token) names.
    pub fn mean_choices(&self, which: impl Fn(usize, usize) -> bool) -> Vec<f64> {
        let (mut sums, mut count) = (vec![0.0; self.modules], 0usize);
        for (token, choices) in self.choices.chunks_exact(self.modules).enumerate() {
            if which(token / TOKENS, token % TOKENS) {
                count += 1;
                sums.iter_mut().zip(choices).for_each(|(sum, choice)| *sum += *choice as f64);
            }
        }
        sums.iter().map(|sum| sum / count.max(1) as f64).collect()
    }

    /// FLOPs a picture, in millions.
    pub fn megaflops(&self) -> Result<f64, ExampleError> {
        Ok(self.cost.total(&self.mean_choices(|_, _| true))? / 1e6)
    }

    /// Share of the learners' full cost that the tokens `which` names use.
    pub fn share(&self, which: impl Fn(usize, usize) -> bool) -> f64 {
        let used = self.mean_choices(which).into_iter().zip(&self.cost.modules);
        let full: f64 =
            self.cost.modules.iter().map(|module| module.learner * module.num_blocks as f64).sum();
        used.map(|(choice, module)| choice * module.learner).sum::<f64>() / full
    }

    /// Share of the tokens by module and number of learners.
    pub fn histogram(&self) -> Vec<Vec<f64>> {
        let mut shares = vec![vec![0.0; LEARNERS + 1]; self.modules];
        let tokens = (self.choices.len() / self.modules) as f64;
        for choices in self.choices.chunks_exact(self.modules) {
            choices.iter().zip(&mut shares).for_each(|(choice, shares)| shares[*choice] += 1.0 / tokens);
        }
        shares
    }

    /// Mean over the modules of the share of tokens that make the most frequent choice: 1 when gates collapsed.
    pub fn most_frequent(&self) -> f64 {
        let largest = |shares: &Vec<f64>| shares.iter().copied().fold(0.0, f64::max);
        self.histogram().iter().map(largest).sum::<f64>() / self.modules as f64
    }
}
