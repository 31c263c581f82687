//! Backward step of the convolution of images for Burn's autodiff.

use burn::backend::{
    Autodiff,
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

impl<B: ImageConvolutionBackend> Backward<B, 3> for ImageConvolution {
    /// Image, kernel, and the values before an activation.
    type State = (FloatTensor<B>, FloatTensor<B>, Option<FloatTensor<B>>, ImageConvolutionSpec);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (x, weight, before, spec) = ops.state;
        let gradient = match (spec.activation, before) {
            (Some(activation), Some(before)) => {
                let (_, slope) = activation.portable_value_and_slope::<B>(Primitive(before));
                (Primitive(gradient) * slope).0
            }
            _ => gradient,
        };
        let [of_x, of_weight, of_bias] = &ops.parents;
        let wanted = ImageGradients {
            x: of_x.is_some(),
            weight: of_weight.is_some(),
            bias: of_bias.is_some() && spec.has_bias,
        };
        let (x, weight, bias) = B::image_convolution_backward(x, weight, gradient, spec, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip([x, weight, bias]) {
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
        bias: FloatTensor<Self>,
        spec: ImageConvolutionSpec,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        let (x, weight, bias) = (x.into_primitive(), weight.into_primitive(), bias.into_primitive());
        match ImageConvolution.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let linear = ImageConvolutionSpec { activation: None, ..spec };
                let before = B::image_convolution(x.clone(), weight.clone(), bias, linear);
                match spec.activation {
                    None => prep.finish((x, weight, None, spec), before),
                    Some(activation) => {
                        let y = activation.portable_value::<B>(Primitive(before.clone())).0;
                        prep.finish((x, weight, Some(before), spec), y)
                    }
                }
            }
            OpsKind::UnTracked(prep) => prep.finish(B::image_convolution(x, weight, bias, spec)),
        }
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
