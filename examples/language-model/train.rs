//! One optimiser step at a time, with Burn's optimiser, schedule and clipping; and the way in and out of checkpoints.

use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::prelude::*;
use gatekit::core::probe::ExpertLoad;
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::sequence::lm::Targets;
use gatekit::sequence::{AutoModel, CausalLm, RoutedLm};
use gatekit_examples::training::schedule;

use crate::checkpoint::Checkpoint;
use crate::data::Corpus;
use crate::error::RunError;
use crate::experts;
use crate::model;
use crate::settings::Settings;

/// A model in training.
pub struct Trainer {
    model: AutoModel,
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
    settings: Settings,
    device: Device,
    step: usize,
}

/// What one step did.
pub struct Step {
    /// Counted from one.
    pub number: usize,
    /// Mean cross entropy of the batch before the update, in nats.
    pub loss: f32,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// How the batch used the experts, one entry a sparse layer.
    pub loads: Vec<ExpertLoad>,
}

impl Trainer {
    /// Initial weights from the seed.
    pub fn new(settings: &Settings, device: &Device) -> Result<Self, RunError> {
        let device = device.clone().autodiff();
        device.seed(settings.seed);
        // Burn initialises parameters when they are first used: all of them now, in one order, from this seed.
        let model = model::config(settings)?.try_init(&device)?.materialize();
        let optimizer = AdamWConfig::new()
            .with_beta_2(settings.beta_2 as f32)
            .with_epsilon(1e-8)
            .with_weight_decay(settings.weight_decay as f32)
            .with_grad_clipping(Some(GradientClippingConfig::Norm(settings.clip_norm as f32)))
            .init();
        Ok(Self {
            model,
            optimizer,
            scheduler: learning_rates(settings)?,
            settings: settings.clone(),
            device,
            step: 0,
        })
    }

    /// The state that a checkpoint holds.
    pub fn resume(settings: &Settings, checkpoint: Checkpoint, device: &Device) -> Result<Self, RunError> {
        let fresh = Self::new(settings, device)?;
        let unfit =
            |error: burn::store::RecordError| ConfigError::new("checkpoint", error, "this model's weights");
        Ok(Self {
            model: fresh.model.try_load_record(checkpoint.model).map_err(unfit)?,
            optimizer: fresh.optimizer.load_record(checkpoint.optimizer),
            scheduler: fresh.scheduler.load_record(checkpoint.scheduler),
            step: checkpoint.step,
            ..fresh
        })
    }

    /// The state to go on from.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            step: self.step,
            model: self.model.clone().into_record(),
            optimizer: self.optimizer.to_record(),
            scheduler: self.scheduler.to_record(),
        }
    }

    /// Draws the next batch and takes one step on it.
    pub fn train_step(&mut self, corpus: &Corpus) -> Result<Step, RunError> {
        let Settings { seed, batch_size, context, .. } = self.settings;
        let batch = corpus.batch(seed, self.step, batch_size, context);
        let targets = Targets::new(&batch, self.model.vocab_size(), &self.device)?;

        let (logits, routings) = self.model.forward_with_routing(Tensor::from_data(batch, &self.device));
        let loss = targets.cross_entropy(logits);
        let balance = self.settings.balance();
        let balanced = match experts::balance_loss(balance, &routings, [batch_size, context]) {
            Some(balance) => loss.clone() + balance,
            None => loss.clone(),
        };
        let gradients = GradientsParams::from_grads(balanced.backward(), &self.model);
        let rates = self.scheduler.step();
        let learning_rate = rates.base();
        self.model = self.optimizer.step(rates, self.model.clone(), gradients);
        if let Some(balancer) = experts::balancer(balance) {
            self.model = self.model.clone().rebalance(&balancer, &routings);
        }
        self.step += 1;
        let loads = routings.iter().map(|routing| ExpertLoad::of([&routing.assignment])).collect();

        let loss = loss.into_scalar::<f32>();
        if !loss.is_finite() {
            return Err(RunError::Diverged { step: self.step, loss });
        }
        Ok(Step { number: self.step, loss, learning_rate, loads })
    }

    /// Steps taken.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// The model as it stands, without the machinery for gradients.
    pub fn trained(&self) -> AutoModel {
        self.model.valid()
    }
}

/// The learning rate of every step; what is wrong with it is named by its flag.
fn learning_rates(settings: &Settings) -> Result<ModuleLrScheduler, ConfigError> {
    schedule(settings.learning_rate, settings.warmup, settings.steps)
        .map_err(|error| ConfigError { field: format!("--{}", error.field.replace('_', "-")), ..error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{RunIdentity, newest};
    use crate::settings::{Balance, Ffn, Mixer};

    fn tiny(mixer: Mixer) -> Settings {
        Settings {
            mixer,
            layers: 2,
            dim: 16,
            context: 24,
            batch_size: 2,
            steps: 6,
            warmup: 2,
            ..Settings::QUICK
        }
    }

    fn corpus() -> Corpus {
        Corpus::new(b"The quality of mercy is not strain'd, it droppeth as the gentle rain. ".repeat(8))
    }

    fn losses(trainer: &mut Trainer, corpus: &Corpus, steps: usize) -> Vec<u32> {
        (0..steps).map(|_| trainer.train_step(corpus).expect("a step").loss.to_bits()).collect()
    }

    /// Six steps in one go, and three, a checkpoint on the disk, and three more: the same losses to the last bit.
    fn resumed_run_repeats_the_uninterrupted_one(settings: Settings) {
        let _alone = crate::random_numbers();
        let corpus = corpus();
        let run = RunIdentity { settings, text: corpus.identity() };
        let device = Device::default();
        let folder = tempfile::tempdir().expect("a temporary folder");

        let mut straight = Trainer::new(&run.settings, &device).expect("built");
        let expected = losses(&mut straight, &corpus, 6);

        let mut first = Trainer::new(&run.settings, &device).expect("built");
        let mut found = losses(&mut first, &corpus, 3);
        first.checkpoint().write(&run, folder.path()).expect("written");
        drop(first);

        let newest = newest(folder.path()).expect("listed").expect("one");
        let checkpoint = Checkpoint::read(&newest, &run).expect("whole");
        let mut second = Trainer::resume(&run.settings, checkpoint, &device).expect("resumed");
        assert_eq!(second.steps_done(), 3);
        found.extend(losses(&mut second, &corpus, 3));

        assert_eq!(found, expected);
        let first_loss = f32::from_bits(expected[0]);
        assert!(f32::from_bits(expected[5]) < first_loss, "six steps learn something");
        assert!(
            (first_loss - 256_f32.ln()).abs() < 0.3,
            "at first all bytes are equally likely: {first_loss}"
        );
    }

    #[test]
    fn resumed_gla_run_repeats_the_uninterrupted_one() {
        resumed_run_repeats_the_uninterrupted_one(tiny(Mixer::Gla));
    }

    #[test]
    fn resumed_softmax_run_repeats_the_uninterrupted_one() {
        resumed_run_repeats_the_uninterrupted_one(tiny(Mixer::Softmax));
    }

    #[test]
    fn resumed_sparse_runs_repeat_the_uninterrupted_ones() {
        let sparse = Settings { ffn: Ffn::Moe, ..tiny(Mixer::Gla) };
        for balance in [Balance::None, Balance::Loss, Balance::Bias] {
            let capacity = (balance == Balance::Loss).then_some(1.0);
            let settings = Settings { balance: Some(balance), capacity, ..sparse.clone() };
            resumed_run_repeats_the_uninterrupted_one(settings);
        }
        resumed_run_repeats_the_uninterrupted_one(tiny(Mixer::DeepseekV3));
    }

    /// After the same first step the balance is what differs, and steps report the loads of every sparse layer.
    #[test]
    fn losses_and_biases_change_the_training_of_the_experts() {
        let _alone = crate::random_numbers();
        let corpus = corpus();
        let trained = |mixer, balance| {
            let settings = Settings { ffn: Ffn::Moe, balance: Some(balance), ..tiny(mixer) };
            let mut trainer = Trainer::new(&settings, &Device::default()).expect("built");
            let steps: Vec<Step> = (0..2).map(|_| trainer.train_step(&corpus).expect("a step")).collect();
            let weights = gatekit::sequence::checkpoint::named_parameters(&trainer.trained());
            (steps, weights)
        };
        for (mixer, layers) in [(Mixer::Retnet, 2), (Mixer::DeepseekV3, 1), (Mixer::GatedAttention, 2)] {
            let (plain, without) = trained(mixer, Balance::None);
            let (balanced, with_loss) = trained(mixer, Balance::Loss);
            let (_, with_bias) = trained(mixer, Balance::Bias);
            assert_eq!(
                plain[0].loss.to_bits(),
                balanced[0].loss.to_bits(),
                "the loss shown is without the balance"
            );
            assert_eq!((plain[1].loads.len(), balanced[0].loads[0].shares.len()), (layers, 4));
            let gate = without.keys().find(|name| name.ends_with("mlp.gate.weight")).expect("a router");
            assert_ne!(without[gate], with_loss[gate], "{mixer:?}");
            let bias =
                with_bias.keys().find(|name| name.ends_with("e_score_correction_bias")).expect("a bias");
            assert!(with_bias[bias].iter::<f64>().any(|bias| bias != 0.0), "{mixer:?}");
        }
    }

    #[test]
    fn the_seed_decides_the_first_loss() {
        let _alone = crate::random_numbers();
        let corpus = corpus();
        let first_loss = |seed| {
            let settings = Settings { seed, ..tiny(Mixer::Gla) };
            let mut trainer = Trainer::new(&settings, &Device::default()).expect("built");
            losses(&mut trainer, &corpus, 1)
        };
        assert_eq!(first_loss(1), first_loss(1));
        assert_ne!(first_loss(1), first_loss(2));
    }

    #[test]
    fn the_schedule_warms_up_and_ends_at_a_tenth() {
        let settings = Settings { steps: 100, warmup: 10, ..Settings::DEFAULT };
        let mut scheduler = learning_rates(&settings).expect("valid");
        let rates: Vec<f64> = (0..100).map(|_| scheduler.step().base()).collect();
        let peak = settings.learning_rate;
        assert!((rates[0] - 0.1 * peak).abs() < 1e-12 && (rates[10] - peak).abs() < 1e-12);
        assert!(rates[..11].is_sorted() && rates[10..].iter().rev().is_sorted());
        assert!((rates[99] - 0.1 * peak).abs() < 0.01 * peak);

        let all_warmup = Settings { warmup: 100, ..settings };
        assert_eq!(learning_rates(&all_warmup).err().expect("refused").field, "--warmup");
    }
}
