//! The layer.

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::SwiGluExperts;
use crate::common::assert_last_axis;
use crate::dispatch::{Capacity, DispatchPlan};
use crate::error::InputError;
use crate::feed_forward::SwiGlu;
use crate::gate::{GateActivation, output_gate};
use crate::router::{Assignment, Phase, Router, RouterInputs, Routing};

/// An expert that every token goes to: `shared(x)`, times `sigmoid(x . g)` with a gate.
#[derive(Module, Debug)]
pub struct SharedExpert {
    /// The expert.
    pub expert: SwiGlu,
    /// Projection to its gate, `[D, 1]` (Qwen2-MoE).
    pub gate: Option<Linear>,
}

impl SharedExpert {
    /// `[N, D]` to `[N, D]`.
    ///
    /// # Panics
    ///
    /// When `x` has another width.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = self.expert.forward(x.clone());
        match &self.gate {
            Some(gate) => output_gate(y, gate.forward(x), GateActivation::Sigmoid),
            None => y,
        }
    }
}

/// A mixture of experts in place of a feed-forward layer: `y = sum_k w_k f_k(x) + shared(x)`.
///
/// A token is sent to its K experts only: slots are sorted by expert and go through
/// [`gated_experts`](crate::dispatch::gated_experts). Experts overflow in training alone.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct MoeLayer {
    /// Decides which experts a token goes to.
    pub gate: Router,
    /// The experts.
    pub experts: SwiGluExperts,
    /// The expert that every token goes to.
    pub shared_expert: Option<SharedExpert>,
    #[module(skip)]
    pub(super) capacity: Option<Capacity>,
    pub(super) hidden_size: usize,
}

impl MoeLayer {
    /// `[.., D]` to `[.., D]`, in the phase of the device: training with autodiff, else inference.
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have D channels; when the router needs token ids (see
    /// [`forward_with`](Self::forward_with)); in debug builds for a NaN logit.
    pub fn forward<const A: usize>(&self, x: Tensor<A>) -> Tensor<A> {
        self.forward_with_routing(x).0
    }

    /// As [`forward`](Self::forward), with what the router decided: what balancing losses
    /// ([`BalanceLosses`](crate::router::BalanceLosses)) and balancers need.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_with_routing<const A: usize>(&self, x: Tensor<A>) -> (Tensor<A>, Routing) {
        let phase = Phase::of(&x.device());
        self.forward_with(x, &RouterInputs::default(), phase).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`forward_with_routing`](Self::forward_with_routing), with given draws or token ids (one
    /// a token of the flattened `x`) and in a given phase.
    ///
    /// # Errors
    ///
    /// As [`Router::route`].
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have D channels, or as [`Router::route`].
    pub fn forward_with<const A: usize>(
        &self,
        x: Tensor<A>,
        inputs: &RouterInputs,
        phase: Phase,
    ) -> Result<(Tensor<A>, Routing), InputError> {
        let dims = x.dims();
        assert_last_axis("MoeLayer", dims, self.hidden_size);
        let tokens: usize = dims[..A - 1].iter().product();
        if tokens == 0 {
            // A reshape would read the 0 as "this axis as it is".
            let none = Tensor::zeros([0, self.hidden_size], (&x.device(), x.dtype()));
            return Ok((x, self.gate.route(none, inputs, phase)?));
        }
        let x = x.reshape([tokens, self.hidden_size]);
        let mut routing = self.gate.route(x.clone(), inputs, phase)?;
        if let Some(capacity) = self.capacity.filter(|_| phase == Phase::Training) {
            routing.assignment = overflow(capacity, &routing);
        }
        Ok((self.through(x, &routing).reshape(dims), routing))
    }

    /// As [`forward`](Self::forward), with experts that are chosen already: a routing of the router
    /// from which slots were [pruned](Routing::prune), or one from elsewhere.
    ///
    /// # Panics
    ///
    /// When the last axis of `x` does not have D channels, or `routing` another number of tokens or
    /// experts.
    pub fn forward_routed<const A: usize>(&self, x: Tensor<A>, routing: &Routing) -> Tensor<A> {
        let dims = x.dims();
        assert_last_axis("MoeLayer", dims, self.hidden_size);
        let tokens: usize = dims[..A - 1].iter().product();
        let got = (routing.assignment.tokens(), routing.assignment.num_experts());
        let need = (tokens, self.gate.num_experts());
        assert!(got == need, "MoeLayer: `routing` has {got:?} tokens and experts, need {need:?}");
        match tokens {
            0 => x,
            _ => self.through(x.reshape([tokens, self.hidden_size]), routing).reshape(dims),
        }
    }

    /// Tokens `[N, D]`, at least one, through their experts and the shared one.
    fn through(&self, x: Tensor<2>, routing: &Routing) -> Tensor<2> {
        let y = match x.dims()[0] {
            1 => self.one_token(x.clone(), routing),
            _ => {
                let plan = DispatchPlan::new(&routing.assignment);
                self.experts.combine(x.clone(), &plan, routing.weights.clone())
            }
        };
        match &self.shared_expert {
            Some(shared) => y + shared.forward(x),
            _ => y,
        }
    }

    /// K products, without sorting.
    fn one_token(&self, x: Tensor<2>, routing: &Routing) -> Tensor<2> {
        let (experts, kept) = (routing.assignment.experts(), routing.assignment.kept());
        let outputs = (0..experts.len()).filter(|slot| kept[*slot]).map(|slot| {
            let weight = routing.weights.clone().narrow(1, slot, 1);
            let y = self.experts.forward_expert(x.clone(), experts[slot]);
            let dtype = y.dtype();
            y * weight.cast(dtype)
        });
        outputs.reduce(|sum, output| sum + output).unwrap_or_else(|| x.zeros_like())
    }
}

/// What is left when full experts have dropped their last slots.
fn overflow(capacity: Capacity, routing: &Routing) -> Assignment {
    let first_weights: Vec<f64> = match capacity.needs_weights() {
        true => routing.weights.clone().narrow(1, 0, 1).into_data().iter::<f64>().collect(),
        false => Vec::new(),
    };
    capacity.apply(routing.assignment.clone(), &first_weights)
}

impl ModuleDisplay for MoeLayer {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("gate", &self.gate)
            .add("experts", &self.experts)
            .add("shared_expert", &self.shared_expert)
            .optional()
    }
}
