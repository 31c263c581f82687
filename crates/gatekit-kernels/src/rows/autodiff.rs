//! Backward step for Burn's autodiff.

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

use super::{RowMap, RowsBackend};

#[derive(Debug)]
struct CombineRows;

impl<B: RowsBackend> Backward<B, 1> for CombineRows {
    type State = Arc<RowMap>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, B::combine_rows(gradient, Arc::new(ops.state.transposed())));
        }
    }
}

impl<B: RowsBackend, C: CheckpointStrategy> RowsBackend for Autodiff<B, C> {
    fn combine_rows(x: FloatTensor<Self>, map: Arc<RowMap>) -> FloatTensor<Self> {
        let node = x.node();
        let y = B::combine_rows(x.into_primitive(), map.clone());
        match CombineRows.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(map, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
