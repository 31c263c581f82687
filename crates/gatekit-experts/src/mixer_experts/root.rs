//! The root network, and what contexts make of it.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};
use gatekit_core::gate::{GateActivation, output_gate};

use super::solver::{StackedField, VectorField};

/// Where the slopes of the Swish begin.
const SLOPES: [f64; 2] = [0.01, 1.0];

/// A linear layer `y = W x + b`, its weight `[out, in]` as it is published. Starts `U(+-1/sqrt(in))`.
#[derive(Module, Debug)]
pub struct RootLayer {
    /// `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

/// The weights that all environments of an expert share: linear layers, sizes D, width, .., width, D, and a
/// slope for the Swish after each but the last.
#[derive(Module, Debug)]
pub struct RootNetwork {
    /// Linear layers.
    pub layers: Vec<RootLayer>,
    /// Slopes `[1]`, one a layer but the last; start `U(0.01, 1)`.
    pub betas: Vec<Param<Tensor<1>>>,
}

impl RootNetwork {
    pub(super) fn new(data_size: usize, width: usize, depth: usize, device: &Device) -> Self {
        let layer = |index: usize| {
            let fan_in = if index == 0 { data_size } else { width };
            let fan_out = if index + 1 == depth { data_size } else { width };
            let bound = 1.0 / (fan_in as f64).sqrt();
            let uniform = Initializer::Uniform { min: -bound, max: bound };
            RootLayer {
                weight: uniform.init([fan_out, fan_in], device),
                bias: uniform.init([fan_out], device),
            }
        };
        let slopes = Initializer::Uniform { min: SLOPES[0], max: SLOPES[1] };
        Self {
            layers: (0..depth).map(layer).collect(),
            betas: (1..depth).map(|_| slopes.init([1], device)).collect(),
        }
    }

    /// Outputs and inputs of every layer.
    pub(super) fn sizes(&self) -> Vec<[usize; 2]> {
        self.layers.iter().map(|layer| layer.weight.dims()).collect()
    }
}

/// Root networks with the weights of n environments: a vector field.
///
/// `dy/dt = W_L s(.. s(W_1 y + b_1) ..) + b_L` with `s(u) = u sigmoid(beta u)`.
#[derive(Debug, Clone)]
pub struct AdaptedRoot {
    pub(super) layers: Vec<AdaptedLayer>,
}

#[derive(Debug, Clone)]
pub(super) struct AdaptedLayer {
    /// `[n, in, out]`.
    pub weight: Tensor<3>,
    /// `[n, 1, out]`.
    pub bias: Tensor<3>,
    /// `[n, 1, 1]`; none behind the last layer.
    pub slope: Option<Tensor<3>>,
}

impl VectorField for AdaptedRoot {
    fn velocity(&self, y: Tensor<3>) -> Tensor<3> {
        self.layers.iter().fold(y, |y, layer| {
            let u = y.matmul(layer.weight.clone()) + layer.bias.clone();
            match &layer.slope {
                Some(slope) => {
                    let logits = u.clone() * slope.clone();
                    output_gate(u, logits, GateActivation::Sigmoid)
                }
                None => u,
            }
        })
    }
}

impl StackedField for AdaptedRoot {
    fn stack(parts: Vec<Self>) -> Self {
        let depth = parts.first().map_or(0, |part| part.layers.len());
        let mut parts: Vec<_> = parts.into_iter().map(|part| part.layers.into_iter()).collect();
        if parts.len() == 1 {
            return Self { layers: parts.remove(0).collect() };
        }
        let layers = (0..depth).map(|_| {
            let layers: Vec<AdaptedLayer> = parts.iter_mut().filter_map(Iterator::next).collect();
            let cat =
                |of: &dyn Fn(&AdaptedLayer) -> Tensor<3>| Tensor::cat(layers.iter().map(of).collect(), 0);
            let slopes: Option<Vec<_>> = layers.iter().map(|layer| layer.slope.clone()).collect();
            AdaptedLayer {
                weight: cat(&|layer| layer.weight.clone()),
                bias: cat(&|layer| layer.bias.clone()),
                slope: slopes.map(|slopes| Tensor::cat(slopes, 0)),
            }
        });
        Self { layers: layers.collect() }
    }
}

/// `[width, width]` factors start Xavier-uniform: `U(+-sqrt(6 / (rows + columns)))`.
pub(super) fn xavier([rows, columns]: [usize; 2], device: &Device) -> Param<Tensor<2>> {
    let bound = (6.0 / (rows + columns) as f64).sqrt();
    Initializer::Uniform { min: -bound, max: bound }.init([rows, columns], device)
}

/// The scalar that an expert adds to its context; starts 0.
pub(super) fn shift(device: &Device) -> Param<Tensor<1>> {
    Initializer::Zeros.init([1], device)
}

/// `contexts + shift`.
pub(super) fn shifted(contexts: Tensor<2>, shift: &Option<Param<Tensor<1>>>) -> Tensor<2> {
    match shift {
        Some(shift) => contexts + shift.val().unsqueeze_dim(0),
        None => contexts,
    }
}
