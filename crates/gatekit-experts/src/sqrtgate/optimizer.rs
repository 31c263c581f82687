//! Every parameter to its optimiser.

use std::collections::BTreeMap;

use burn::config::Config;
use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer, OptimizerRecord};
use burn::tensor::Tensor;
use gatekit_core::parameters::ParameterPlace;
use gatekit_core::{ConfigError, InputError};

use super::adam_h::AdamHConfig;
use super::guard::{Guarded, SkippedGradient, SkippedGradients, is_finite};
use super::muon_h::MuonHConfig;
use super::sphere::frobenius_norm;

/// Which optimiser a parameter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SphereGroup {
    /// [`MuonH`](super::MuonH): weight matrices and stacks, the router's included.
    MuonH,
    /// [`AdamH`](super::AdamH): the output head.
    AdamH,
    /// Adam without a sphere or decay: embeddings and vectors.
    Adam,
}

/// Configuration of [`SphereOptimizer`].
///
/// Parameters are named by their path of fields in the module (`lm_head.weight`, without the variants of
/// enums), or by what it begins with up to a point (`lm_head`). Matrices and stacks that no list names go to MuonH, vectors to Adam.
#[derive(Config, Debug)]
pub struct SphereOptimizerConfig {
    /// The optimiser of matrices.
    #[config(default = "MuonHConfig::new()")]
    pub muon_h: MuonHConfig,
    /// The optimiser of heads.
    #[config(default = "AdamHConfig::new()")]
    pub adam_h: AdamHConfig,
    /// Shares of the moments that stay, in Adam. Default (0.9, 0.95).
    #[config(default = "(0.9, 0.95)")]
    pub adam_betas: (f64, f64),
    /// Added to the root of the second moment, in Adam, above 0. Default 1e-8.
    #[config(default = 1e-8)]
    pub adam_epsilon: f64,
    /// Parameters for MuonH besides those that no list names.
    #[config(default = "Vec::new()")]
    pub matrices: Vec<String>,
    /// Parameters for AdamH.
    #[config(default = "Vec::new()")]
    pub heads: Vec<String>,
    /// Parameters for Adam besides vectors.
    #[config(default = "Vec::new()")]
    pub embeddings: Vec<String>,
}

impl SphereOptimizerConfig {
    /// Registers all trained parameters of `module`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the parameter when it is in two lists or, shared, in two groups; when it
    /// belongs on a sphere and has a matrix of zeros, from which there is no direction, or is a vector;
    /// and names an entry of a list that belongs to no parameter, or a field of an optimiser that cannot
    /// be used.
    pub fn try_init<M: Module>(&self, module: &M) -> Result<SphereOptimizer, ConfigError> {
        self.muon_h.check().map_err(|error| error.within("muon_h"))?;
        self.adam_h.check().map_err(|error| error.within("adam_h"))?;
        let (beta1, beta2) = self.adam_betas;
        super::muon_h::check_rates(&[("adam_betas", beta1), ("adam_betas", beta2)], 0.0, self.adam_epsilon)
            .map_err(|error| if error.field == "epsilon" { error.within("adam") } else { error })?;
        let mut visitor = Registration::default();
        module.clone().train().visit(&mut visitor);
        self.check_lists(&visitor.parameters)?;

        let adam = AdamConfig::new()
            .with_beta_1(beta1 as f32)
            .with_beta_2(beta2 as f32)
            .with_epsilon(self.adam_epsilon as f32)
            .build();
        let skipped = SkippedGradients::default();
        let mut optimizer = ModuleOptimizer::from(Guarded::named(adam.clone(), "", skipped.clone()));
        let mut groups = BTreeMap::new();
        let mut by_id: Vec<(ParamId, &str, SphereGroup)> = Vec::new();
        for parameter in &visitor.parameters {
            let name = parameter.name.as_str();
            let group = self.group(parameter)?;
            match by_id.iter().find(|(id, _, _)| *id == parameter.id) {
                Some((_, _, other)) if *other == group => continue,
                Some((_, other_name, other)) => {
                    let got = format!("{group:?}, and {other:?} as `{other_name}`");
                    return Err(ConfigError::new(name, got, "one group: the parameter is shared"));
                }
                None => by_id.push((parameter.id, name, group)),
            }
            // One group a parameter, so that a report can name it.
            let (of_path, report) = (ParamGroup::from_path(&parameter.path), skipped.clone());
            optimizer = match group {
                SphereGroup::MuonH => {
                    optimizer.with_group(of_path, Guarded::named(self.muon_h.build(), name, report), None)
                }
                SphereGroup::AdamH => {
                    optimizer.with_group(of_path, Guarded::named(self.adam_h.build(), name, report), None)
                }
                SphereGroup::Adam => {
                    optimizer.with_group(of_path, Guarded::named(adam.clone(), name, report), None)
                }
            };
            groups.insert(name.to_string(), group);
        }
        Ok(SphereOptimizer { optimizer, skipped, groups })
    }

    fn check_lists(&self, parameters: &[Registered]) -> Result<(), ConfigError> {
        for (field, list) in
            [("matrices", &self.matrices), ("heads", &self.heads), ("embeddings", &self.embeddings)]
        {
            let unknown = list.iter().find(|name| !parameters.iter().any(|parameter| parameter.is(name)));
            if let Some(name) = unknown {
                return Err(ConfigError::new(
                    field,
                    format!("`{name}`"),
                    "a trained parameter of the module",
                ));
            }
        }
        Ok(())
    }

    fn group(&self, parameter: &Registered) -> Result<SphereGroup, ConfigError> {
        let lists = [
            (&self.matrices, SphereGroup::MuonH),
            (&self.heads, SphereGroup::AdamH),
            (&self.embeddings, SphereGroup::Adam),
        ];
        let named: Vec<SphereGroup> = (lists.into_iter())
            .filter(|(list, _)| list.iter().any(|name| parameter.is(name)))
            .map(|(_, group)| group)
            .collect();
        let group = match named[..] {
            [] if parameter.shape.len() >= 2 => SphereGroup::MuonH,
            [] => SphereGroup::Adam,
            [group] => group,
            _ => return Err(ConfigError::new(&parameter.name, format!("groups {named:?}"), "one group")),
        };
        let per_matrix = match group {
            SphereGroup::MuonH => self.muon_h.per_matrix,
            SphereGroup::AdamH => self.adam_h.per_matrix,
            SphereGroup::Adam => return Ok(group),
        };
        if parameter.shape.len() < 2 {
            let need = format!("a matrix or a stack of them for {group:?}");
            return Err(ConfigError::new(&parameter.name, format!("shape {:?}", parameter.shape), need));
        }
        let zero = parameter.norms.iter().position(|norm| *norm == 0.0);
        let all_zero = parameter.norms.iter().all(|norm| *norm == 0.0);
        match zero.filter(|_| per_matrix || all_zero) {
            Some(matrix) => {
                let got = format!("zeros in matrix {matrix} of {}", parameter.norms.len());
                Err(ConfigError::new(&parameter.name, got, "a weight with a direction: zero has no sphere"))
            }
            None => Ok(group),
        }
    }
}

/// Sends every parameter of a module to [`MuonH`](super::MuonH), [`AdamH`](super::AdamH) or Adam, with one
/// learning rate for all: see [`SphereOptimizerConfig`].
///
/// [`step`](Self::step) takes no step at all when a gradient is not finite. Burn's learner owns a
/// `ModuleOptimizer` instead: [`into_module_optimizer`](Self::into_module_optimizer) hands it over, which
/// skips such a parameter alone; what was skipped is at [`skipped`](Self::skipped) either way.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::Device;
/// use gatekit_core::ModuleConfig;
/// use gatekit_experts::sqrtgate::{SphereGroup, SphereOptimizerConfig, SqrtGateConfig};
///
/// let layer = SqrtGateConfig::new(16).init(&Device::flex().autodiff());
/// let optimizer = SphereOptimizerConfig::new().try_init(&layer).unwrap();
/// assert_eq!(optimizer.group("router.weight"), Some(SphereGroup::MuonH));
/// # }
/// ```
#[derive(Clone)]
pub struct SphereOptimizer {
    optimizer: ModuleOptimizer,
    skipped: SkippedGradients,
    groups: BTreeMap<String, SphereGroup>,
}

impl SphereOptimizer {
    /// One step, or none when a gradient is not finite: then the module comes back as it was, and the
    /// gradients at fault with it.
    ///
    /// # Errors
    ///
    /// [`InputError`] names a parameter whose gradient has another shape.
    pub fn step<M: Module>(
        &mut self,
        rates: impl Into<ModuleLearningRate>,
        module: M,
        gradients: GradientsParams,
    ) -> Result<(M, Vec<SkippedGradient>), InputError> {
        let mut check = GradientCheck {
            place: ParameterPlace::default(),
            gradients: &gradients,
            skipped: Vec::new(),
            error: None,
        };
        module.visit(&mut check);
        let GradientCheck { skipped, error, .. } = check;
        match error {
            Some(error) => Err(error),
            None if skipped.is_empty() => Ok((self.optimizer.step(rates, module, gradients), skipped)),
            None => Ok((module, skipped)),
        }
    }

    /// The group of the parameter of this name; `None` for one that is not trained.
    pub fn group(&self, path: &str) -> Option<SphereGroup> {
        self.groups.get(path).copied()
    }

    /// All parameters and their groups.
    pub fn groups(&self) -> &BTreeMap<String, SphereGroup> {
        &self.groups
    }

    /// Gradients that the handed-over optimiser skips, now and later.
    pub fn skipped(&self) -> SkippedGradients {
        self.skipped.clone()
    }

    /// The optimiser for Burn's learner.
    pub fn into_module_optimizer(self) -> ModuleOptimizer {
        self.optimizer
    }

    /// The state of all parameters, to be saved.
    pub fn to_record(&self) -> OptimizerRecord {
        self.optimizer.to_record()
    }

    /// Goes on from a state that was saved, for the same module.
    pub fn load_record(self, record: OptimizerRecord) -> Self {
        Self { optimizer: self.optimizer.load_record(record), ..self }
    }
}

/// A trained parameter at its registration.
#[derive(Debug)]
struct Registered {
    /// What Burn's optimisers call it: with the variants of enums.
    path: String,
    /// What everybody else does.
    name: String,
    id: ParamId,
    shape: Vec<usize>,
    /// Norm of every matrix; of a vector none.
    norms: Vec<f64>,
}

impl Registered {
    /// Whether `name` is its name, or what it begins with up to a point.
    fn is(&self, name: &str) -> bool {
        self.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

#[derive(Default)]
struct Registration {
    place: ParameterPlace,
    parameters: Vec<Registered>,
}

impl ModuleVisitor for Registration {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.place.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        if !value.is_require_grad() {
            return;
        }
        let shape = value.dims().to_vec();
        let norms = match D {
            0 | 1 => Vec::new(),
            _ => frobenius_norm(value.inner(), true).into_data().iter::<f64>().collect(),
        };
        let (path, name) = (self.place.path(), self.place.name());
        self.parameters.push(Registered { path, name, id: param.id, shape, norms });
    }
}

struct GradientCheck<'a> {
    place: ParameterPlace,
    gradients: &'a GradientsParams,
    skipped: Vec<SkippedGradient>,
    error: Option<InputError>,
}

impl ModuleVisitor for GradientCheck<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.place.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.get::<D>(param.id) else { return };
        let (got, need) = (gradient.dims(), param.shape().to_vec());
        if got[..] != need[..] {
            let field = format!("gradient of `{}`", self.place.name());
            self.error.get_or_insert(InputError::new(field, format!("shape {got:?}"), format!("{need:?}")));
        } else if !is_finite(&gradient) {
            self.skipped.push(SkippedGradient { parameter: self.place.name(), shape: need });
        }
    }
}
