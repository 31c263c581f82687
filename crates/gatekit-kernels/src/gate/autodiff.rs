//! Backward steps of the gates for Burn's autodiff.

use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};

use super::{Activation, GateBackend};

#[derive(Debug)]
struct Product;

impl<B: GateBackend> Backward<B, 2> for Product {
    type State = (FloatTensor<B>, FloatTensor<B>, Activation);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (x, logits, activation) = ops.state;
        let (x, logits) = B::gated_product_backward(x, logits, gradient, activation);
        for (parent, gradient) in ops.parents.into_iter().zip([x, logits]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct LogSigmoid;

impl<B: GateBackend> Backward<B, 1> for LogSigmoid {
    type State = (FloatTensor<B>, f64, Option<f64>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (logits, normalizer, floor) = ops.state;
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            let gradient = B::log_sigmoid_scaled_backward(logits, gradient, normalizer, floor);
            grads.register::<B>(parent.id, gradient);
        }
    }
}

impl<B: GateBackend, C: CheckpointStrategy> GateBackend for Autodiff<B, C> {
    fn gated_product(
        x: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), logits.node()];
        let (x, logits) = (x.into_primitive(), logits.into_primitive());
        match Product.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::gated_product(x.clone(), logits.clone(), activation);
                prep.finish((x, logits, activation), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gated_product(x, logits, activation)),
        }
    }

    fn gated_product_backward(
        x: FloatTensor<Self>,
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (x, logits) = B::gated_product_backward(
            x.into_primitive(),
            logits.into_primitive(),
            gradient.into_primitive(),
            activation,
        );
        (FloatTensor::<Self>::new(x), FloatTensor::<Self>::new(logits))
    }

    fn log_sigmoid_scaled(
        logits: FloatTensor<Self>,
        normalizer: f64,
        floor: Option<f64>,
    ) -> FloatTensor<Self> {
        let nodes = [logits.node()];
        let logits = logits.into_primitive();
        match LogSigmoid.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let gate = B::log_sigmoid_scaled(logits.clone(), normalizer, floor);
                prep.finish((logits, normalizer, floor), gate)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::log_sigmoid_scaled(logits, normalizer, floor)),
        }
    }

    fn log_sigmoid_scaled_backward(
        logits: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        normalizer: f64,
        floor: Option<f64>,
    ) -> FloatTensor<Self> {
        let (logits, gradient) = (logits.into_primitive(), gradient.into_primitive());
        FloatTensor::<Self>::new(B::log_sigmoid_scaled_backward(logits, gradient, normalizer, floor))
    }
}
