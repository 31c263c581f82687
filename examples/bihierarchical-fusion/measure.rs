//! Training a model and what it reaches on proteins that it has not seen.

use burn::tensor::Device;
use gatekit::fusion::bihierarchical_fusion::loss::residue_loss;
use gatekit_examples::tasks::{self, average_precision};
use gatekit_examples::{ExampleError, Training, progress, train};
use rand::seq::IndexedRandom;

use crate::network::{Network, Variant};
use crate::proteins::{Batch, Fault, ORDERS, Protein};

/// Proteins looked at together when measuring.
const TOGETHER: usize = 25;

/// Sizes of the experiment.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub levels: usize,
    pub width: usize,
    pub steps: usize,
    pub learning_rate: f64,
    pub batch: usize,
    pub train: usize,
    pub test: usize,
}

/// Proteins to learn from and to measure on; they depend on the seed alone.
pub struct Data {
    train: Vec<Protein>,
    test: Vec<Protein>,
    seed: u64,
}

impl Data {
    pub fn draw(sizes: &Sizes, seed: u64) -> Self {
        let mut random = tasks::random(seed);
        let mut draw = |count| (0..count).map(|_| Protein::draw(&mut random)).collect();
        Self { train: draw(sizes.train), test: draw(sizes.test), seed }
    }

    /// Share of residues that carry each label, on the proteins that are measured on: what chance reaches.
    pub fn shares(&self) -> [f64; 2] {
        let labels: Vec<[bool; 2]> = self.test.iter().flat_map(|protein| protein.labels.clone()).collect();
        [0, 1].map(|order| labels.iter().filter(|label| label[order]).count() as f64 / labels.len() as f64)
    }

    /// Trains a model of `parameters` parameters, about.
    pub fn teach(
        &self,
        variant: Variant,
        sizes: &Sizes,
        parameters: usize,
        device: &Device,
        label: &str,
    ) -> Result<Network, ExampleError> {
        device.seed(self.seed);
        let model = variant.build(sizes.levels, parameters, device)?;
        let training = Training {
            steps: sizes.steps,
            learning_rate: sizes.learning_rate,
            warmup: sizes.steps / 10,
            weight_decay: 0.01,
            clip: 1.0,
        };
        // The same proteins in the same order for every model.
        let mut random = tasks::random(self.seed.wrapping_add(1));
        let autodiff = device.clone().autodiff();
        let (model, _) = train(model, &training, &progress(sizes.steps, label), |model, _| {
            let proteins: Vec<&Protein> = self.train.sample(&mut random, sizes.batch).collect();
            let batch =
                Batch::new(&proteins, Fault::None, &mut random, &autodiff).expect("a fold is a graph");
            residue_loss(model.forward(&batch).0, batch.labels, &batch.graph.mask)
        });
        Ok(model)
    }

    /// Average precision of both labels under a fault.
    pub fn precision(
        &self,
        model: &Network,
        fault: Fault,
        device: &Device,
    ) -> Result<[f64; 2], ExampleError> {
        // The same noise for every model.
        let mut random = tasks::random(self.seed.wrapping_add(2));
        let mut scores: [Vec<f64>; 2] = Default::default();
        let mut wanted: [Vec<bool>; 2] = Default::default();
        for proteins in self.test.chunks(TOGETHER) {
            let proteins: Vec<&Protein> = proteins.iter().collect();
            let batch = Batch::new(&proteins, fault, &mut random, device)?;
            let (logits, _) = model.forward(&batch);
            let longest = logits.dims()[1];
            let logits: Vec<f64> = logits.into_data().iter::<f64>().collect();
            for (protein, logits) in proteins.iter().zip(logits.chunks(longest * ORDERS.len())) {
                for (labels, logits) in protein.labels.iter().zip(logits.chunks(ORDERS.len())) {
                    for order in 0..ORDERS.len() {
                        scores[order].push(logits[order]);
                        wanted[order].push(labels[order]);
                    }
                }
            }
        }
        Ok([0, 1].map(|order| average_precision(&scores[order], &wanted[order])))
    }

    /// Mean weight of the structure branch over buried and exposed residues, by level; a residue is buried when more
    /// residues are near it than near half of all. Nothing for a model without such weights.
    pub fn weights(&self, model: &Network, device: &Device) -> Result<Vec<[f64; 2]>, ExampleError> {
        let mut near: Vec<usize> =
            self.test.iter().flat_map(|protein| protein.near.iter().copied()).collect();
        near.sort_unstable();
        let median = near[near.len() / 2];
        let mut random = tasks::random(self.seed);
        let mut sums: Vec<[(f64, usize); 2]> = Vec::new();
        for proteins in self.test.chunks(TOGETHER) {
            let proteins: Vec<&Protein> = proteins.iter().collect();
            let batch = Batch::new(&proteins, Fault::None, &mut random, device)?;
            let (_, gates) = model.forward(&batch);
            sums.resize(gates.len(), Default::default());
            for (sums, gate) in sums.iter_mut().zip(gates) {
                let longest = gate.dims()[1];
                let gate: Vec<f64> = gate.into_data().iter::<f64>().collect();
                for (protein, gate) in proteins.iter().zip(gate.chunks(2 * longest)) {
                    for (&near, pair) in protein.near.iter().zip(gate.chunks(2)) {
                        let (sum, count) = &mut sums[usize::from(near <= median)];
                        *sum += pair[1];
                        *count += 1;
                    }
                }
            }
        }
        Ok(sums.into_iter().map(|level| level.map(|(sum, count)| sum / count.max(1) as f64)).collect())
    }
}
