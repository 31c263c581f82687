//! Backward steps of the scans for Burn's autodiff.

use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{ElementwiseSpec, GradientOf, ScanArguments, ScanBackend, ScanSpec};

/// Backward step of one of the two results of a matrix-state scan.
#[derive(Debug)]
struct MatrixScan(GradientOf);

impl<B: ScanBackend> Backward<B, 6> for MatrixScan {
    type State = (ScanArguments<B>, ScanSpec);

    fn backward(self, ops: Ops<Self::State, 6>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (arguments, spec) = ops.state;
        let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments;
        let (q, k, v, log_decay, beta, initial_state) =
            B::matrix_scan_backward(q, k, v, log_decay, beta, initial_state, gradient, self.0, spec);
        for (parent, gradient) in ops.parents.into_iter().zip([q, k, v, log_decay, beta, initial_state]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Backward step of one of the two results of an elementwise scan.
#[derive(Debug)]
struct ElementwiseScan(GradientOf);

impl<B: ScanBackend> Backward<B, 3> for ElementwiseScan {
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, ElementwiseSpec);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (output, log_decay, initial_state, spec) = ops.state;
        let (x, log_decay, initial_state) =
            B::elementwise_scan_backward(output, log_decay, initial_state, gradient, self.0, spec);
        for (parent, gradient) in ops.parents.into_iter().zip([x, log_decay, initial_state]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: ScanBackend, C: CheckpointStrategy> ScanBackend for Autodiff<B, C> {
    fn matrix_scan(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        spec: ScanSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = || [q.node(), k.node(), v.node(), log_decay.node(), beta.node(), initial_state.node()];
        let arguments = ScanArguments::<B> {
            q: q.primitive().clone(),
            k: k.primitive().clone(),
            v: v.primitive().clone(),
            log_decay: log_decay.primitive().clone(),
            beta: beta.primitive().clone(),
            initial_state: initial_state.primitive().clone(),
        };
        let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments.clone();
        let (output, state) = B::matrix_scan(q, k, v, log_decay, beta, initial_state, spec.clone());
        let track = |of, result| match MatrixScan(of).prepare::<C>(nodes()).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((arguments.clone(), spec.clone()), result),
            OpsKind::UnTracked(prep) => prep.finish(result),
        };
        (track(GradientOf::Output, output), track(GradientOf::FinalState, state))
    }

    fn matrix_scan_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        of: GradientOf,
        spec: ScanSpec,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let (q, k, v, log_decay, beta, initial_state) = B::matrix_scan_backward(
            q.into_primitive(),
            k.into_primitive(),
            v.into_primitive(),
            log_decay.into_primitive(),
            beta.into_primitive(),
            initial_state.into_primitive(),
            gradient.into_primitive(),
            of,
            spec,
        );
        let constant = FloatTensor::<Self>::new;
        (constant(q), constant(k), constant(v), constant(log_decay), constant(beta), constant(initial_state))
    }

    fn elementwise_scan(
        x: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        spec: ElementwiseSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = || [x.node(), log_decay.node(), initial_state.node()];
        let (log_decay_value, initial) = (log_decay.primitive().clone(), initial_state.primitive().clone());
        let (output, state) = B::elementwise_scan(
            x.primitive().clone(),
            log_decay_value.clone(),
            initial.clone(),
            spec.clone(),
        );
        let kept = (output.clone(), log_decay_value, initial, spec);
        let track = |of, result| match ElementwiseScan(of).prepare::<C>(nodes()).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(kept.clone(), result),
            OpsKind::UnTracked(prep) => prep.finish(result),
        };
        (track(GradientOf::Output, output), track(GradientOf::FinalState, state))
    }

    fn elementwise_scan_backward(
        output: FloatTensor<Self>,
        log_decay: FloatTensor<Self>,
        initial_state: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        of: GradientOf,
        spec: ElementwiseSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (x, log_decay, initial_state) = B::elementwise_scan_backward(
            output.into_primitive(),
            log_decay.into_primitive(),
            initial_state.into_primitive(),
            gradient.into_primitive(),
            of,
            spec,
        );
        let constant = FloatTensor::<Self>::new;
        (constant(x), constant(log_decay), constant(initial_state))
    }
}
