//! A module's parameters one by one: their names, and which of them are trained.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// A float parameter of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterInfo {
    /// What Burn's optimisers call it: the fields on the way, and the variants of enums.
    pub path: String,
    /// The fields on the way alone (`model.layers.0.norm.weight`).
    pub name: String,
    /// Its shape in Burn's layout.
    pub shape: Vec<usize>,
    /// Whether it is trained.
    pub trained: bool,
}

/// All float parameters in the order of their fields.
///
/// On a device without autodiff none of them counts as trained.
pub fn parameters<M: Module>(module: &M) -> Vec<ParameterInfo> {
    let mut lister = Lister::default();
    module.visit(&mut lister);
    lister.found
}

/// The module with those float parameters trained that `trains` chooses by their
/// [name](ParameterInfo::name) and shape, and all others frozen.
///
/// The choice stays with the parameters when the module changes between a device with autodiff and one without.
pub fn set_trained<M: Module>(module: M, trains: impl FnMut(&str, &[usize]) -> bool) -> M {
    module.map(&mut Chooser { place: ParameterPlace::default(), trains })
}

/// Where a visitor or mapper of a module stands; tell it of every module that is entered and left.
#[derive(Debug, Clone, Default)]
pub struct ParameterPlace {
    path: Vec<String>,
    name: Vec<String>,
}

impl ParameterPlace {
    /// At the arguments of `enter_module`.
    pub fn enter(&mut self, name: &str, container: &str) {
        self.path.push(name.to_string());
        if !is_enum(container) {
            self.name.push(name.to_string());
        }
    }

    /// At the container of `exit_module`.
    pub fn exit(&mut self, container: &str) {
        self.path.pop();
        if !is_enum(container) {
            self.name.pop();
        }
    }

    /// See [`ParameterInfo::path`].
    pub fn path(&self) -> String {
        self.path.join(".")
    }

    /// See [`ParameterInfo::name`].
    pub fn name(&self) -> String {
        self.name.join(".")
    }
}

/// Whether what is entered is a variant: names do not have them.
fn is_enum(container: &str) -> bool {
    container.starts_with("Enum:")
}

#[derive(Default)]
struct Lister {
    place: ParameterPlace,
    found: Vec<ParameterInfo>,
}

impl ModuleVisitor for Lister {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.place.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.push(ParameterInfo {
            path: self.place.path(),
            name: self.place.name(),
            shape: param.lazy_shape().to_vec(),
            trained: param.val().is_require_grad(),
        });
    }
}

struct Chooser<F> {
    place: ParameterPlace,
    trains: F,
}

impl<F: FnMut(&str, &[usize]) -> bool> ModuleMapper for Chooser<F> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.place.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trains = (self.trains)(&self.place.name(), &param.lazy_shape());
        param.set_require_grad(trains)
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{LayerNormConfig, Linear, LinearConfig};

    use super::*;
    use crate::test_util::devices;

    #[derive(Module, Debug)]
    enum Either {
        Linear(Linear),
    }

    #[derive(Module, Debug)]
    struct Pair {
        list: Vec<Either>,
        norm: burn::nn::LayerNorm,
    }

    #[test]
    fn chosen_parameters_stay_chosen() {
        for device in devices() {
            let module = Pair {
                list: vec![Either::Linear(LinearConfig::new(2, 3).init(&device))],
                norm: LayerNormConfig::new(2).init(&device),
            };
            assert!(parameters(&module).iter().all(|parameter| !parameter.trained));
            let chosen = set_trained(module, |name, shape| shape == [2, 3] || name == "norm.beta");
            let chosen = chosen.train().valid().train();
            let found = parameters(&chosen);
            let trained: Vec<(&str, bool)> = found.iter().map(|p| (p.name.as_str(), p.trained)).collect();
            let expected =
                [("list.0.weight", true), ("list.0.bias", false), ("norm.gamma", false), ("norm.beta", true)];
            assert_eq!(trained, expected);
            assert_eq!((found[0].path.as_str(), &found[0].shape[..]), ("list.0.Linear.weight", &[2, 3][..]));
        }
    }
}
