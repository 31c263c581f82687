//! Backward step of the short convolution for Burn's autodiff.

use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{ConvolutionArguments, ConvolutionBackend, ConvolutionSpec};

#[derive(Debug)]
struct ShortConvolution;

impl<B: ConvolutionBackend> Backward<B, 4> for ShortConvolution {
    type State = (ConvolutionArguments<B>, ConvolutionSpec);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (arguments, spec) = ops.state;
        let (x, weight, bias, state) = arguments.into_tuple();
        let (x, weight, bias, state) = B::short_convolution_backward(x, weight, bias, state, gradient, spec);
        for (parent, gradient) in ops.parents.into_iter().zip([x, weight, bias, state]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: ConvolutionBackend, C: CheckpointStrategy> ConvolutionBackend for Autodiff<B, C> {
    fn short_convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        state: FloatTensor<Self>,
        spec: ConvolutionSpec,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node(), state.node()];
        let arguments = ConvolutionArguments::<B> {
            x: x.into_primitive(),
            weight: weight.into_primitive(),
            bias: bias.into_primitive(),
            state: state.into_primitive(),
        };
        let (x, weight, bias, state) = arguments.clone().into_tuple();
        let y = B::short_convolution(x, weight, bias, state, spec.clone());
        match ShortConvolution.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((arguments, spec), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn short_convolution_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: ConvolutionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (x, weight, bias, state) = B::short_convolution_backward(
            x.into_primitive(),
            weight.into_primitive(),
            bias.into_primitive(),
            state.into_primitive(),
            gradient.into_primitive(),
            spec,
        );
        let constant = FloatTensor::<Self>::new;
        (constant(x), constant(weight), constant(bias), constant(state))
    }
}
