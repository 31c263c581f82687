//! The chain of learners.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation::relu};
use gatekit_core::InputError;
use gatekit_core::activation::gelu;
use gatekit_core::dispatch::{PrefixPlan, depth_execute};

use super::config::{AcmActivation, AcmBias};
use super::cost::AcmCost;

/// N small two-layer learners, whose partial sums are each a valid output.
///
/// ```text
/// s_i = act(x w1_i + b1_i) w2_i + b2_i        learner i = 1 .. N: columns of w1, rows of w2
/// h_0 = b2_0 (0 without output bias)          h_n = h_0 + sum_{i <= n} s_i
/// ```
///
/// With `detach`, `h_n = stopgrad(h_{n-1}) + s_n`: the same values, but a partial sum trains its last learner alone.
/// Starts as released: `w1` uniform within `1 / sqrt(N b)`, `w2` and `b2` within `1 / sqrt(d)`, `b1` within
/// `1 / sqrt(b)`. Wójcik et al. (arXiv 2312.10193), section 3.1.
#[derive(Module, Debug)]
pub struct AcmLearners {
    /// First matrices, side by side, `[d, N b]` (in by out).
    pub w1: Param<Tensor<2>>,
    /// Biases before the activation, `[N b]`.
    pub b1: Option<Param<Tensor<1>>>,
    /// Second matrices, on top of one another, `[N b, d]` (in by out).
    pub w2: Param<Tensor<2>>,
    /// Biases of the outputs, `[(N + 1) d]`: that of `h_0` first.
    pub b2: Option<Param<Tensor<1>>>,
    pub(super) num_blocks: usize,
    #[module(skip)]
    pub(super) activation: AcmActivation,
    pub(super) detach: bool,
}

impl AcmLearners {
    /// From tensors: `w1` `[d, N b]`, `b1` `[N b]`, `w2` `[N b, d]`, `b2` `[(N + 1) d]`, and N, `num_blocks`.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the tensor that the others contradict, or a bias that `bias` does not expect.
    pub fn from_tensors(
        (w1, b1): (Tensor<2>, Option<Tensor<1>>),
        (w2, b2): (Tensor<2>, Option<Tensor<1>>),
        num_blocks: usize,
        bias: AcmBias,
        activation: AcmActivation,
    ) -> Result<Self, InputError> {
        let ([d, inner], [rows, out]) = (w1.dims(), w2.dims());
        if num_blocks == 0 || inner == 0 || inner % num_blocks != 0 {
            return Err(InputError::new(
                "num_blocks",
                num_blocks,
                format!("a divisor of w1's {inner} columns"),
            ));
        }
        if d == 0 || [rows, out] != [inner, d] {
            return Err(InputError::new(
                "w2",
                format!("{:?}", w2.dims()),
                format!("[{inner}, {d}], as w1 [{d}, {inner}] says"),
            ));
        }
        let check = |name: &str, got: Option<usize>, wanted: bool, need: usize| match got {
            None if wanted => {
                Err(InputError::new(name, "none", format!("[{need}], as `bias` = {bias} says")))
            }
            Some(got) if !wanted => {
                Err(InputError::new(name, format!("[{got}]"), format!("none, as `bias` = {bias} says")))
            }
            Some(got) if got != need => Err(InputError::new(name, format!("[{got}]"), format!("[{need}]"))),
            _ => Ok(()),
        };
        let length = |tensor: &Option<Tensor<1>>| tensor.as_ref().map(|tensor| tensor.dims()[0]);
        check("b1", length(&b1), bias.hidden(), inner)?;
        check("b2", length(&b2), bias.out(), (num_blocks + 1) * d)?;
        Ok(Self {
            w1: Param::from_tensor(w1),
            b1: b1.map(Param::from_tensor),
            w2: Param::from_tensor(w2),
            b2: b2.map(Param::from_tensor),
            num_blocks,
            activation,
            detach: false,
        })
    }

    /// Width d of input and output.
    pub fn hidden_dim(&self) -> usize {
        self.w1.dims()[0]
    }

    /// Learners N.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Inner width b of one learner.
    pub fn block_dim(&self) -> usize {
        self.w1.dims()[1] / self.num_blocks
    }

    /// Which biases there are.
    pub fn bias(&self) -> AcmBias {
        match (&self.b1, &self.b2) {
            (None, None) => AcmBias::None,
            (Some(_), None) => AcmBias::HiddenOnly,
            (None, Some(_)) => AcmBias::OutOnly,
            (Some(_), Some(_)) => AcmBias::Both,
        }
    }

    /// What one learner costs, in FLOPs a token.
    pub fn cost(&self) -> f64 {
        AcmCost::of_learner(self.hidden_dim(), self.block_dim(), self.bias())
    }

    /// All partial sums h, `[batch, time, d]` to `[batch, time, N + 1, d]`.
    ///
    /// # Panics
    ///
    /// When `x` does not have d channels.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, time, d] = self.check(&x);
        if batch * time == 0 {
            return Tensor::zeros([batch, time, self.num_blocks + 1, d], (&x.device(), x.dtype()));
        }
        let sums = self.partial_sums(x.reshape([batch * time, d]));
        Tensor::stack::<3>(sums, 1).reshape([batch, time, self.num_blocks + 1, d])
    }

    /// `h_0 .. h_N`, each `[M, d]`.
    fn partial_sums(&self, x: Tensor<2>) -> Vec<Tensor<2>> {
        let hidden = self.hidden(x.clone(), 0, self.num_blocks);
        let mut sums = vec![self.start(&x)];
        for learner in 0..self.num_blocks {
            let before = sums[learner].clone();
            let before = if self.detach { before.detach() } else { before };
            let own = hidden.clone().narrow(1, learner * self.block_dim(), self.block_dim());
            sums.push(before + self.output(own, learner, 1));
        }
        sums
    }

    /// The partial sum of the first `k` learners alone, `[batch, time, d]`: two matrix products of width `k b`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for k above N.
    ///
    /// # Panics
    ///
    /// When `x` does not have d channels.
    pub fn forward_first(&self, x: Tensor<3>, k: usize) -> Result<Tensor<3>, InputError> {
        let [batch, time, d] = self.check(&x);
        if k > self.num_blocks {
            return Err(InputError::new("k", k, format!("at most the {} learners", self.num_blocks)));
        }
        if batch * time == 0 {
            return Ok(x);
        }
        Ok(self.first(x.reshape([batch * time, d]), k).reshape([batch, time, d]))
    }

    /// `h_k` of `[M, d]`.
    fn first(&self, x: Tensor<2>, k: usize) -> Tensor<2> {
        if k == 0 {
            return self.start(&x);
        }
        if self.detach {
            let last = self.output(self.hidden(x.clone(), k - 1, 1), k - 1, 1);
            return self.first(x, k - 1).detach() + last;
        }
        let y = self.output(self.hidden(x, 0, k), 0, k);
        match self.out_bias(0, 1) {
            Some(bias) => y + bias,
            None => y,
        }
    }

    /// `y = sum_k z_k h_k` with the gate z `[batch, time, N + 1]`, through which gradients flow: every learner runs.
    ///
    /// # Panics
    ///
    /// When `x` does not have d channels or `gate` is not of its shape with N + 1 entries a token.
    pub fn forward_mixed(&self, x: Tensor<3>, gate: Tensor<3>) -> Tensor<3> {
        let [batch, time, d] = self.check(&x);
        let (tokens, blocks) = (batch * time, self.num_blocks);
        assert!(
            gate.dims() == [batch, time, blocks + 1],
            "AcmLearners: `gate` {:?} needs to be [{batch}, {time}, {}]",
            gate.dims(),
            blocks + 1
        );
        if tokens == 0 {
            return x;
        }
        let (x, gate) = (x.reshape([tokens, d]), gate.reshape([tokens, blocks + 1]));
        let gate = gate.cast(x.dtype());
        let y = if self.detach {
            let weighted = (self.partial_sums(x).into_iter().enumerate())
                .map(|(k, sum)| gate.clone().narrow(1, k, 1) * sum);
            weighted.reduce(|sum, term| sum + term).expect("there is h_0")
        } else {
            // Learner i counts in every sum from the i-th on, so with the weight t_i = sum_{k >= i} z_k.
            let weights: Vec<_> =
                (0..=blocks).map(|i| gate.clone().narrow(1, i, blocks + 1 - i).sum_dim(1)).collect();
            let weights = Tensor::cat(weights, 1);
            let hidden = self.hidden(x, 0, blocks).reshape([tokens, blocks, self.block_dim()]);
            let of_learners = weights.clone().narrow(1, 1, blocks).unsqueeze_dim::<3>(2);
            let hidden = (hidden * of_learners).reshape([tokens, blocks * self.block_dim()]);
            let y = hidden.matmul(self.w2.val());
            match &self.b2 {
                Some(bias) => y + weights.matmul(bias.val().reshape([blocks + 1, d])),
                None => y,
            }
        };
        y.reshape([batch, time, d])
    }

    /// `h_k` with a k for every token: learner i runs on the tokens whose k is at least i, and on no other, in one
    /// product of width `k b` for all tokens of equal k; no weight is copied.
    ///
    /// `x` `[batch, time, d]`; the plan has one row a token, in row-major order. In value and gradient
    /// [`forward_mixed`](Self::forward_mixed) with a constant one-hot gate.
    ///
    /// # Panics
    ///
    /// When `x` does not have d channels or the plan is not one of these tokens and N stages.
    pub fn forward_chosen(&self, x: Tensor<3>, plan: &PrefixPlan) -> Tensor<3> {
        let [batch, time, d] = self.check(&x);
        assert!(
            (plan.rows(), plan.stages()) == (batch * time, self.num_blocks),
            "AcmLearners: a plan of {} rows and {} stages for {} tokens and {} learners",
            plan.rows(),
            plan.stages(),
            batch * time,
            self.num_blocks
        );
        if batch * time == 0 {
            return x;
        }
        // The learners of a token are the first columns of w1 and rows of w2: one product for all tokens of a depth.
        depth_execute(x.reshape([batch * time, d]), plan, |depth, x| self.first(x, depth))
            .reshape([batch, time, d])
    }

    /// `act(x w1 + b1)` of `count` learners, the first of which is `from`: `[M, count b]`.
    fn hidden(&self, x: Tensor<2>, from: usize, count: usize) -> Tensor<2> {
        let (start, width) = (from * self.block_dim(), count * self.block_dim());
        let inner = x.matmul(part(self.w1.val(), 1, start, width));
        let inner = match &self.b1 {
            Some(bias) => inner + part(bias.val(), 0, start, width).unsqueeze::<2>(),
            None => inner,
        };
        match self.activation {
            AcmActivation::Gelu => gelu(inner),
            AcmActivation::Relu => relu(inner),
            AcmActivation::Identity => inner,
        }
    }

    /// `sum_i (hidden_i w2_i + b2_i)` of `count` learners, the first of which is `from`: `[M, d]`.
    fn output(&self, hidden: Tensor<2>, from: usize, count: usize) -> Tensor<2> {
        let rows = part(self.w2.val(), 0, from * self.block_dim(), count * self.block_dim());
        match self.out_bias(from + 1, count) {
            Some(bias) => hidden.matmul(rows) + bias,
            None => hidden.matmul(rows),
        }
    }

    /// The sum of `count` output biases, `[1, d]`.
    fn out_bias(&self, from: usize, count: usize) -> Option<Tensor<2>> {
        let d = self.hidden_dim();
        let bias = part(self.b2.as_ref()?.val(), 0, from * d, count * d);
        Some(match count {
            1 => bias.unsqueeze(),
            _ => bias.reshape([count, d]).sum_dim(0),
        })
    }

    /// `h_0` for every row of `x`.
    fn start(&self, x: &Tensor<2>) -> Tensor<2> {
        match self.out_bias(0, 1) {
            Some(bias) => bias.expand(x.dims()),
            None => Tensor::zeros(x.dims(), (&x.device(), x.dtype())),
        }
    }

    fn check(&self, x: &Tensor<3>) -> [usize; 3] {
        let d = self.hidden_dim();
        assert!(x.dims()[2] == d, "AcmLearners: `x` {:?} needs {d} channels in its last axis", x.dims());
        x.dims()
    }
}

/// A piece along an axis, the tensor itself where it is all of it.
fn part<const D: usize>(x: Tensor<D>, axis: usize, start: usize, width: usize) -> Tensor<D> {
    if x.dims()[axis] == width { x } else { x.narrow(axis, start, width) }
}
