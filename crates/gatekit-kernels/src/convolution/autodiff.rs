//! Backward step of the convolution of images for Burn's autodiff.

use burn::backend::{
    Autodiff, Backend,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{ImageConvolutionBackend, ImageConvolutionSpec, ImageGradients};
use crate::primitive::Primitive;

#[derive(Debug)]
struct ImageConvolution;

/// What the backward pass keeps.
#[derive(Debug)]
struct Kept<B: ImageConvolutionBackend> {
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    /// The sums, and the scale, where there is one.
    scaled: Option<[Primitive<B>; 2]>,
    /// The values before an activation.
    before: Option<Primitive<B>>,
    spec: ImageConvolutionSpec,
}

impl<B: ImageConvolutionBackend> Clone for Kept<B> {
    fn clone(&self) -> Self {
        Self {
            x: self.x.clone(),
            weight: self.weight.clone(),
            scaled: self.scaled.clone(),
            before: self.before.clone(),
            spec: self.spec,
        }
    }
}

/// A value for every output, over batch and positions.
fn over_images<B: Backend>(row: Primitive<B>) -> Primitive<B> {
    let outputs = row.dims()[0];
    row.reshape([1, outputs, 1, 1])
}

/// The sum for every output, over batch and positions.
fn of_outputs<B: Backend>(values: Primitive<B>) -> Primitive<B> {
    let outputs = values.dims()[1];
    values.sum(3).sum(2).sum(0).reshape([outputs])
}

impl<B: ImageConvolutionBackend> Backward<B, 4> for ImageConvolution {
    type State = Kept<B>;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = Primitive::<B>(grads.consume::<B>(&ops.node));
        let Kept { x, weight, scaled, before, spec } = ops.state;
        let gradient = match (spec.activation, before) {
            (Some(activation), Some(before)) => gradient * activation.portable_value_and_slope(before).1,
            _ => gradient,
        };
        let [of_x, of_weight, of_scale, of_bias] = ops.parents;
        // The bias comes after the scale.
        if let Some(parent) = of_bias.as_ref().filter(|_| scaled.is_some()) {
            grads.register::<B>(parent.id, of_outputs(gradient.clone()).0);
        }
        let (gradient, of_bias) = match scaled {
            Some([sums, scale]) => {
                if let Some(parent) = of_scale {
                    grads.register::<B>(parent.id, of_outputs(gradient.clone() * sums).0);
                }
                (gradient * over_images(scale), None)
            }
            None => (gradient, of_bias),
        };
        let wanted = ImageGradients {
            x: of_x.is_some(),
            weight: of_weight.is_some(),
            bias: of_bias.is_some() && spec.has_bias,
        };
        let (x, weight, bias) = B::image_convolution_backward(x, weight, gradient.0, spec, wanted);
        for (parent, gradient) in [of_x, of_weight, of_bias].into_iter().zip([x, weight, bias]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: ImageConvolutionBackend, C: CheckpointStrategy> ImageConvolutionBackend for Autodiff<B, C> {
    fn image_convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spec: ImageConvolutionSpec,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), scale.node(), bias.node()];
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        let (scale, bias) = (scale.into_primitive(), bias.into_primitive());
        let prep = match ImageConvolution.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep,
            OpsKind::UnTracked(prep) => {
                return prep.finish(B::image_convolution(x, weight, scale, bias, spec));
            }
        };
        let plain = ImageConvolutionSpec { has_scale: false, activation: None, ..spec };
        let sums = |bias, has_bias| {
            let spec = ImageConvolutionSpec { has_bias, ..plain };
            let y = B::image_convolution(x.clone(), weight.clone(), scale.clone(), bias, spec);
            Primitive::<B>(y)
        };
        let (before, scaled) = match (spec.has_scale, spec.has_bias) {
            (false, has_bias) => (sums(bias, has_bias), None),
            (true, has_bias) => {
                let (sums, scale) = (sums(bias.clone(), false), Primitive::<B>(scale.clone()));
                let scaled = sums.clone() * over_images(scale.clone());
                let bias = has_bias.then(|| over_images(Primitive::<B>(bias)));
                (bias.into_iter().fold(scaled, |scaled, bias| scaled + bias), Some([sums, scale]))
            }
        };
        let (y, before) = match spec.activation {
            Some(activation) => (activation.portable_value(before.clone()), Some(before)),
            None => (before, None),
        };
        prep.finish(Kept { x, weight, scaled, before, spec }, y.0)
    }

    fn image_convolution_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: ImageConvolutionSpec,
        wanted: ImageGradients,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (x, weight, bias) = B::image_convolution_backward(
            x.into_primitive(),
            weight.into_primitive(),
            gradient.into_primitive(),
            spec,
            wanted,
        );
        let constant = FloatTensor::<Self>::new;
        (constant(x), constant(weight), constant(bias))
    }
}
