//! Which expert an environment has.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor, activation::softmax};
use gatekit_core::linalg::Matrix;
use gatekit_core::router::{Assignment, Routing};

/// `p = softmax([xi, 1] G)`, one expert by `argmax p` with weight 1 (of equal ones the first).
///
/// `G` is `[C + 1, E]`, its last row the bias, or `[C, E]` without; starts `U(+-1/sqrt(rows))`. Nzoyem et al.
/// (arXiv 2502.05335), section 3.
#[derive(Module, Debug)]
pub struct ContextGate {
    /// G.
    pub gate: Param<Tensor<2>>,
    use_gate_bias: bool,
}

impl ContextGate {
    /// For contexts of `context_size` numbers.
    ///
    /// # Panics
    ///
    /// Without numbers or experts.
    pub fn new(context_size: usize, num_experts: usize, use_gate_bias: bool, device: &Device) -> Self {
        assert!(
            context_size > 0 && num_experts > 0,
            "ContextGate: {context_size} numbers, {num_experts} experts"
        );
        let rows = context_size + usize::from(use_gate_bias);
        let bound = 1.0 / (rows as f64).sqrt();
        let gate = Initializer::Uniform { min: -bound, max: bound }.init([rows, num_experts], device);
        Self { gate, use_gate_bias }
    }

    /// Number of experts E.
    pub fn num_experts(&self) -> usize {
        self.gate.dims()[1]
    }

    /// Numbers C of a context.
    pub fn context_size(&self) -> usize {
        self.gate.dims()[0] - usize::from(self.use_gate_bias)
    }

    /// Whether there is a bias.
    pub fn use_gate_bias(&self) -> bool {
        self.use_gate_bias
    }

    /// `[xi, 1] G`, `[M, E]`, of contexts `[M, C]`.
    fn logits(&self, contexts: Tensor<2>) -> Tensor<2> {
        let [environments, size] = contexts.dims();
        assert!(size == self.context_size(), "ContextGate: contexts of {size}, need {}", self.context_size());
        let gate = self.gate.val();
        if environments == 0 {
            // Not every device has a product without rows.
            return Tensor::zeros([0, self.num_experts()], (&contexts.device(), contexts.dtype()));
        }
        if !self.use_gate_bias {
            return contexts.matmul(gate);
        }
        let weights = gate.clone().narrow(0, 0, size);
        contexts.matmul(weights) + gate.narrow(0, size, 1)
    }

    /// `p`, `[M, E]`, of contexts `[M, C]`. Carries gradients to contexts and gate.
    ///
    /// # Panics
    ///
    /// When the contexts have another width.
    pub fn probabilities(&self, contexts: Tensor<2>) -> Tensor<2> {
        softmax(self.logits(contexts), 1)
    }

    /// Logits, probabilities, one expert an environment and its weight 1.
    ///
    /// # Panics
    ///
    /// When the contexts have another width.
    pub fn route(&self, contexts: Tensor<2>) -> Routing {
        let logits = self.logits(contexts);
        let assignment = Assignment::top(&logits, 1);
        Routing {
            scores: Some(softmax(logits.clone(), 1)),
            indices: assignment.indices(&logits.device()),
            weights: Tensor::ones([assignment.tokens(), 1], (&logits.device(), logits.dtype())),
            logits: Some(logits),
            load: None,
            assignment,
        }
    }

    /// The expert of every environment, without gradients.
    ///
    /// # Panics
    ///
    /// When the contexts have another width.
    pub fn choose(&self, contexts: Tensor<2>) -> Assignment {
        Assignment::top(&self.logits(contexts.detach()).detach(), 1)
    }

    /// Puts another G in place.
    ///
    /// # Panics
    ///
    /// When it has another shape.
    pub fn set(&mut self, gate: &Matrix) {
        let [rows, experts] = self.gate.dims();
        assert!(
            (gate.rows(), gate.columns()) == (rows, experts),
            "ContextGate: {} rows of {}, need {rows} of {experts}",
            gate.rows(),
            gate.columns()
        );
        self.gate = self.gate.clone().map(|old| {
            let new = gate.to_tensor(&old.device(), old.dtype());
            new.set_require_grad(old.is_require_grad())
        });
    }
}
