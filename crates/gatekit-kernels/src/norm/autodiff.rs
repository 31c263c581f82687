//! Backward step of the norm for Burn's autodiff.

use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{NormArguments, NormBackend, NormSpec};

#[derive(Debug)]
struct RmsNorm;

impl<B: NormBackend> Backward<B, 3> for RmsNorm {
    type State = (NormArguments<B>, NormSpec);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (NormArguments { x, weight, logits }, spec) = ops.state;
        let (x, weight, logits) = B::rms_norm_backward(x, weight, logits, gradient, spec);
        for (parent, gradient) in ops.parents.into_iter().zip([x, weight, logits]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: NormBackend, C: CheckpointStrategy> NormBackend for Autodiff<B, C> {
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        spec: NormSpec,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), logits.node()];
        let arguments = NormArguments::<B> {
            x: x.into_primitive(),
            weight: weight.into_primitive(),
            logits: logits.into_primitive(),
        };
        let NormArguments { x, weight, logits } = arguments.clone();
        let y = B::rms_norm(x, weight, logits, spec);
        match RmsNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((arguments, spec), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: NormSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (x, weight, logits) = B::rms_norm_backward(
            x.into_primitive(),
            weight.into_primitive(),
            logits.into_primitive(),
            gradient.into_primitive(),
            spec,
        );
        let constant = FloatTensor::<Self>::new;
        (constant(x), constant(weight), constant(logits))
    }
}
