//! A module's tensors by their published names, in PyTorch's layout.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::store::burn_pack::Tensor as LazyTensor;
use burn::store::{
    Applier, ApplyError, BurnToPyTorchAdapter, ModuleAdapter, ModuleContext, PyTorchToBurnAdapter, bridge,
};
use burn::tensor::{DType, Gradients, Tensor, TensorData};

use super::error::{TensorError, TensorProblem};
use super::layout::{TensorLayout, check_published};

/// Tensors by name.
pub type NamedTensors = BTreeMap<String, TensorData>;

/// Every float parameter of a module, read back from the device.
///
/// Names are the paths of the module's fields (`model.layers.0.attn.q_proj.weight`), without the
/// variants of enums. Values are in PyTorch's layout: `Linear.weight` is `[out, in]`.
///
/// # Panics
///
/// When the device fails to hand a value back.
pub fn named_parameters<M: Module>(module: &M) -> NamedTensors {
    read(collect(module, Source::Values))
}

/// The gradients of a module's float parameters, named and laid out as [`named_parameters`].
/// A parameter that the loss does not depend on has no entry.
///
/// # Panics
///
/// When the device fails to hand a value back.
pub fn named_gradients<M: Module>(module: &M, gradients: &Gradients) -> NamedTensors {
    read(collect(module, Source::Gradients(gradients)))
}

/// Replaces every float parameter of a module; names and layout as in [`named_parameters`].
///
/// # Errors
///
/// [`TensorError`] for the first tensor that is missing, unexpected, or of another shape or kind.
pub fn load_tensors<M: Module>(module: M, tensors: NamedTensors) -> Result<M, TensorError> {
    let shapes = tensors.iter().map(|(name, data)| (name.clone(), data.shape().to_vec())).collect();
    check_published(&module, &TensorLayout::default(), &shapes)?;
    apply(module, tensors)
}

/// Puts tensors of known names and shapes into a module; parameters without one keep their value.
pub(super) fn apply<M: Module>(module: M, tensors: NamedTensors) -> Result<M, TensorError> {
    let tensors = tensors.into_iter().map(|(name, data)| bridge::from_data(data, name, None)).collect();
    // The module is mapped by value here: `ModuleSnapshot::apply` would end the process if the
    // backend panicked half way.
    let mut applier = Applier::new(tensors, None, Some(Box::new(PyTorchToBurnAdapter)), true);
    let module = module.map(&mut applier);
    let outcome = applier.into_result();
    if let Some(error) = outcome.errors.into_iter().next() {
        return Err(refused(error));
    }
    match outcome.unused.into_iter().next() {
        Some(name) => Err(TensorError::new(name, TensorProblem::Unexpected)),
        None => Ok(module),
    }
}

fn refused(error: ApplyError) -> TensorError {
    let (path, problem) = match error {
        ApplyError::ShapeMismatch { path, expected, found } => {
            (path, TensorProblem::Shape { got: found.to_vec(), need: format!("{:?}", expected.to_vec()) })
        }
        ApplyError::DTypeMismatch { path, found, .. } => {
            (path, TensorProblem::Dtype { got: format!("{found:?}") })
        }
        ApplyError::AdapterError { path, message } | ApplyError::LoadError { path, message } => {
            (path, TensorProblem::Device { reason: message })
        }
    };
    TensorError::new(path, problem)
}

/// What to collect of every parameter.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Name and shape alone; such a tensor has no bytes to read.
    Shapes,
    /// The value, read from the device when its bytes are asked for.
    Values,
    /// The gradient, likewise.
    Gradients(&'a Gradients),
}

/// A module's float parameters (or gradients) in published names and layout.
pub(super) fn collect<M: Module>(module: &M, source: Source<'_>) -> Vec<LazyTensor> {
    let mut visitor = Collector { source, path: Vec::new(), containers: Vec::new(), found: Vec::new() };
    module.visit(&mut visitor);
    visitor.found
}

fn read(tensors: Vec<LazyTensor>) -> NamedTensors {
    let read = |tensor: LazyTensor| {
        let name = tensor.name.clone();
        let data = bridge::into_data(tensor).unwrap_or_else(|error| panic!("tensor `{name}`: {error}"));
        (name, data)
    };
    tensors.into_iter().map(read).collect()
}

struct Collector<'a> {
    source: Source<'a>,
    path: Vec<String>,
    containers: Vec<String>,
    found: Vec<LazyTensor>,
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.containers.push(container.to_string());
        if !is_enum(container) {
            self.path.push(name.to_string());
        }
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.containers.pop();
        if !is_enum(container) {
            self.path.pop();
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.join(".");
        let tensor = match self.source {
            Source::Shapes => shape_only(name, param.lazy_shape().to_vec()),
            Source::Values => bridge::from_tensor(&param.transform_for_save().val(), name, None),
            Source::Gradients(gradients) => match param.val().grad(gradients) {
                Some(gradient) => bridge::from_tensor(&gradient, name, None),
                None => return,
            },
        };
        self.found.push(BurnToPyTorchAdapter.adapt(tensor, ModuleContext::new(&self.containers)));
    }
}

/// Published names do not have the variants of enums.
fn is_enum(container: &str) -> bool {
    container.starts_with("Enum:")
}

/// A parameter that is only described. It goes through the same adapter as its values would.
fn shape_only(name: String, shape: Vec<usize>) -> LazyTensor {
    let no_bytes = || Err(burn::store::burn_pack::Error::ValidationError("described only".to_string()));
    LazyTensor::deferred(name, DType::F32, shape, None, 0, no_bytes)
}
