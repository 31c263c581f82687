//! Backward steps of the selective scan for Burn's autodiff.

use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{SelectiveArguments, SelectiveBackend, SelectiveSpec};
use crate::scan::{GradientOf, SixTensors};

/// Backward step of one of the two results.
#[derive(Debug)]
struct SelectiveScan(GradientOf);

impl<B: SelectiveBackend> Backward<B, 6> for SelectiveScan {
    type State = (SelectiveArguments<B>, SelectiveSpec);

    fn backward(self, ops: Ops<Self::State, 6>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (arguments, spec) = ops.state;
        let (x, delta, a, b, c, state) = arguments.into_tuple();
        let (x, delta, a, b, c, state) =
            B::selective_scan_backward(x, delta, a, b, c, state, gradient, self.0, spec);
        for (parent, gradient) in ops.parents.into_iter().zip([x, delta, a, b, c, state]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: SelectiveBackend, C: CheckpointStrategy> SelectiveBackend for Autodiff<B, C> {
    fn selective_scan(
        x: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        spec: SelectiveSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = || [x.node(), delta.node(), a.node(), b.node(), c.node(), initial_state.node()];
        let arguments = SelectiveArguments::<B> {
            x: x.primitive().clone(),
            delta: delta.primitive().clone(),
            a: a.primitive().clone(),
            b: b.primitive().clone(),
            c: c.primitive().clone(),
            initial_state: initial_state.primitive().clone(),
        };
        let (y, state) = {
            let (x, delta, a, b, c, state) = arguments.clone().into_tuple();
            B::selective_scan(x, delta, a, b, c, state, spec.clone())
        };
        let track = |of, result| match SelectiveScan(of).prepare::<C>(nodes()).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((arguments.clone(), spec.clone()), result),
            OpsKind::UnTracked(prep) => prep.finish(result),
        };
        (track(GradientOf::Output, y), track(GradientOf::FinalState, state))
    }

    fn selective_scan_backward(
        x: FloatTensor<Self>,
        delta: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        of: GradientOf,
        spec: SelectiveSpec,
    ) -> SixTensors<Self> {
        let (x, delta, a, b, c, state) = B::selective_scan_backward(
            x.into_primitive(),
            delta.into_primitive(),
            a.into_primitive(),
            b.into_primitive(),
            c.into_primitive(),
            initial_state.into_primitive(),
            gradient.into_primitive(),
            of,
            spec,
        );
        let constant = FloatTensor::<Self>::new;
        (constant(x), constant(delta), constant(a), constant(b), constant(c), constant(state))
    }
}
