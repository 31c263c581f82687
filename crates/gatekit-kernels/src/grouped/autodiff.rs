//! Backward step of the grouped product for Burn's autodiff.

use std::sync::Arc;

use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{ExpertArguments, ExpertSpec, GroupedBackend};

#[derive(Debug)]
struct GroupedMatmul;

impl<B: GroupedBackend> Backward<B, 2> for GroupedMatmul {
    type State = (FloatTensor<B>, FloatTensor<B>, Arc<[usize]>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (x, weight, offsets) = ops.state;
        let (x, weight) = B::grouped_matmul_backward(x, weight, gradient, offsets);
        for (parent, gradient) in ops.parents.into_iter().zip([x, weight]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct GatedExperts;

impl<B: GroupedBackend> Backward<B, 4> for GatedExperts {
    type State = (ExpertArguments<B>, FloatTensor<B>, ExpertSpec);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (ExpertArguments { x, weights, gate_up, down }, kept, spec) = ops.state;
        let (x, weights, gate_up, down) =
            B::gated_experts_backward(x, weights, gate_up, down, kept, gradient, spec);
        for (parent, gradient) in ops.parents.into_iter().zip([x, weights, gate_up, down]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: GroupedBackend, C: CheckpointStrategy> GroupedBackend for Autodiff<B, C> {
    fn grouped_matmul(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        offsets: Arc<[usize]>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        let y = B::grouped_matmul(x.clone(), weight.clone(), offsets.clone());
        match GroupedMatmul.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight, offsets), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn grouped_matmul_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        offsets: Arc<[usize]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (x, weight) = B::grouped_matmul_backward(
            x.into_primitive(),
            weight.into_primitive(),
            gradient.into_primitive(),
            offsets,
        );
        (FloatTensor::<Self>::new(x), FloatTensor::<Self>::new(weight))
    }

    fn gated_experts(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        spec: ExpertSpec,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weights.node(), gate_up.node(), down.node()];
        let arguments = ExpertArguments::<B> {
            x: x.into_primitive(),
            weights: weights.into_primitive(),
            gate_up: gate_up.into_primitive(),
            down: down.into_primitive(),
        };
        let (x, weights, gate_up, down) = arguments.clone().into_tuple();
        match GatedExperts.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (y, kept) = B::gated_experts_kept(x, weights, gate_up, down, spec.clone());
                prep.finish((arguments, kept, spec), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gated_experts(x, weights, gate_up, down, spec)),
        }
    }

    fn gated_experts_kept(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        spec: ExpertSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (y, kept) = B::gated_experts_kept(
            x.into_primitive(),
            weights.into_primitive(),
            gate_up.into_primitive(),
            down.into_primitive(),
            spec,
        );
        (FloatTensor::<Self>::new(y), FloatTensor::<Self>::new(kept))
    }

    fn gated_experts_backward(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        kept: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        spec: ExpertSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (x, weights, gate_up, down) = B::gated_experts_backward(
            x.into_primitive(),
            weights.into_primitive(),
            gate_up.into_primitive(),
            down.into_primitive(),
            kept.into_primitive(),
            gradient.into_primitive(),
            spec,
        );
        let constant = FloatTensor::<Self>::new;
        (constant(x), constant(weights), constant(gate_up), constant(down))
    }
}
