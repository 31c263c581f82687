//! Backward step of the normalisation of channels for Burn's autodiff.

use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{ChannelArguments, ChannelBackend, ChannelNormSpec};

#[derive(Debug)]
struct ChannelNorm;

impl<B: ChannelBackend> Backward<B, 3> for ChannelNorm {
    type State = (ChannelArguments<B>, ChannelNormSpec);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (ChannelArguments { x, gamma, beta, mean, variance }, spec) = ops.state;
        let (x, gamma, beta) = B::channel_norm_backward(x, gamma, beta, mean, variance, gradient, spec);
        for (parent, gradient) in ops.parents.into_iter().zip([x, gamma, beta]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: ChannelBackend, C: CheckpointStrategy> ChannelBackend for Autodiff<B, C> {
    fn channel_statistics(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (mean, variance) = B::channel_statistics(x.into_primitive());
        (FloatTensor::<Self>::new(mean), FloatTensor::<Self>::new(variance))
    }

    fn channel_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        spec: ChannelNormSpec,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let arguments = ChannelArguments::<B> {
            x: x.into_primitive(),
            gamma: gamma.into_primitive(),
            beta: beta.into_primitive(),
            mean: mean.into_primitive(),
            variance: variance.into_primitive(),
        };
        let ChannelArguments { x, gamma, beta, mean, variance } = arguments.clone();
        let y = B::channel_norm(x, gamma, beta, mean, variance, spec);
        match ChannelNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((arguments, spec), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn channel_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: ChannelNormSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (x, gamma, beta) = B::channel_norm_backward(
            x.into_primitive(),
            gamma.into_primitive(),
            beta.into_primitive(),
            mean.into_primitive(),
            variance.into_primitive(),
            gradient.into_primitive(),
            spec,
        );
        let constant = FloatTensor::<Self>::new;
        (constant(x), constant(gamma), constant(beta))
    }

    fn merge_maps(
        base: FloatTensor<Self>,
        refined: FloatTensor<Self>,
        spatial: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        guidance: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::merge_maps(
            base.into_primitive(),
            refined.into_primitive(),
            spatial.into_primitive(),
            gate.into_primitive(),
            guidance.into_primitive(),
            scale.into_primitive(),
            shift.into_primitive(),
        ))
    }

    fn mix_maps(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        spatial: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (x, weights) = (x.into_primitive(), weights.into_primitive());
        FloatTensor::<Self>::new(B::mix_maps(x, weights, spatial.into_primitive()))
    }
}
