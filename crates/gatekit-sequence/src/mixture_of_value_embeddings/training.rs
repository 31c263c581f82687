//! The text model's optimiser.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer, MuonConfig};
use burn::tensor::{Gradients, Tensor};

use super::text::MoveTextModel;

/// The width at which the learning rates of embeddings and head were found; others scale with
/// `sqrt(768 / d)`.
const REFERENCE_WIDTH: f64 = 768.0;

/// Learning rates of the three kinds of parameters, as nanochat's recipe has them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoveLearningRates {
    /// Of all matrices of the layers, gates' projections included; by Muon.
    pub matrices: f64,
    /// Of token and value embeddings; by AdamW.
    pub embeddings: f64,
    /// Of the head; by AdamW.
    pub head: f64,
}

impl MoveLearningRates {
    /// `0.02`, `0.2 sqrt(768 / width)` and `0.004 sqrt(768 / width)`.
    pub fn for_width(width: usize) -> Self {
        let scale = (REFERENCE_WIDTH / width.max(1) as f64).sqrt();
        Self { matrices: 0.02, embeddings: 0.2 * scale, head: 0.004 * scale }
    }
}

/// Parameters that one optimiser and learning rate serve.
#[derive(Clone)]
struct Group {
    parameters: Vec<ParamId>,
    optimizer: ModuleOptimizer,
    learning_rate: f64,
}

/// Muon for the matrices of the layers, AdamW (0.8, 0.95, epsilon 1e-10, no decay) for embeddings,
/// value embeddings and head.
///
/// Muon (Jordan, 2024) moves a matrix along its orthogonalised momentum; a weight of
/// `[out, in]` has its learning rate times `sqrt(max(1, out / in))`. There is no auxiliary loss.
#[derive(Clone)]
pub struct MoveOptimizer {
    groups: Vec<Group>,
}

impl MoveOptimizer {
    /// For the parameters of `model` and those loaded into it later.
    pub fn new(model: &MoveTextModel, rates: MoveLearningRates) -> Self {
        let adam = || {
            AdamWConfig::new()
                .with_beta_1(0.8)
                .with_beta_2(0.95)
                .with_epsilon(1e-10)
                .with_weight_decay(0.0)
                .init()
        };
        let tables = (matrices(&model.transformer.wte).into_iter())
            .chain(model.value_embeds.iter().flat_map(matrices))
            .map(|matrix| matrix.id);
        let head = matrices(&model.lm_head).into_iter().map(|matrix| matrix.id);
        let mut groups = vec![
            Group { parameters: tables.collect(), optimizer: adam(), learning_rate: rates.embeddings },
            Group { parameters: head.collect(), optimizer: adam(), learning_rate: rates.head },
        ];
        // One group a shape: Burn's factor is for [out, in], linear weights are stored [in, out].
        let mut shapes: BTreeMap<(bool, [usize; 2]), Vec<ParamId>> = BTreeMap::new();
        for matrix in model.transformer.h.iter().flat_map(matrices) {
            shapes.entry((matrix.transposed, matrix.shape)).or_default().push(matrix.id);
        }
        for ((transposed, [rows, columns]), parameters) in shapes {
            let factor = |out: usize, inner: usize| (out as f64 / inner as f64).max(1.0).sqrt();
            let correction = match transposed {
                true => factor(columns, rows) / factor(rows, columns),
                false => 1.0,
            };
            groups.push(Group {
                parameters,
                optimizer: MuonConfig::new().init(),
                learning_rate: rates.matrices * correction,
            });
        }
        Self { groups }
    }

    /// One step against `gradients`, with all learning rates times `multiplier` (the schedule's).
    pub fn step(
        &mut self,
        multiplier: f64,
        mut model: MoveTextModel,
        mut gradients: Gradients,
    ) -> MoveTextModel {
        for group in &mut self.groups {
            let own = GradientsParams::from_params(&mut gradients, &model, &group.parameters);
            model = group.optimizer.step(group.learning_rate * multiplier, model, own);
        }
        model
    }
}

struct Matrix {
    id: ParamId,
    shape: [usize; 2],
    /// Stored `[in, out]`.
    transposed: bool,
}

/// The matrices of a module.
fn matrices<M: Module>(module: &M) -> Vec<Matrix> {
    let mut visitor = Matrices::default();
    module.visit(&mut visitor);
    visitor.found
}

#[derive(Default)]
struct Matrices {
    containers: Vec<String>,
    found: Vec<Matrix>,
}

impl ModuleVisitor for Matrices {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.containers.push(container.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let [rows, columns] = param.lazy_shape()[..] {
            let transposed = self.containers.last().is_some_and(|container| container == "Struct:Linear");
            self.found.push(Matrix { id: param.id, shape: [rows, columns], transposed });
        }
    }
}
