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

use super::GroupedBackend;

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
}
