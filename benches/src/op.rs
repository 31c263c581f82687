//! What can be measured, by name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::shape::Shape;

/// Steps that the count of floating-point operations takes a chunk to have.
const CHUNK: usize = 64;

/// A fieldless enum whose values have names that the command line and the files use.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|known| known.name() == text).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|known| known.name()).collect();
                    format!(concat!($what, " `{}` is unknown, need one of {}"), text, known.join(", "))
                })
            }
        }
    };
}

named! {
    /// An operation.
    Op, "op" {
        /// Gated linear attention: a decay per key channel, additive write.
        Gla = "gla",
        /// A decay per head, delta rule.
        GatedDeltaRule = "gated-delta-rule",
        /// Kimi delta attention: a decay per key channel, delta rule.
        Kda = "kda",
        /// A fixed decay per head, additive write.
        Retention = "retention",
        /// No decay, delta rule.
        DeltaRule = "delta-rule",
        /// A decay per key channel, and the key is what it forgets.
        Hgrn2 = "hgrn2",
        /// No decay, additive write.
        Linear = "linear",
        /// The elementwise recurrence (HGRN).
        Elementwise = "elementwise",
        /// The selective scan of state-space models, with 16 numbers of state a channel.
        SelectiveScan = "selective-scan",
        /// The causal depthwise convolution of four taps with SiLU.
        ShortConvolution = "short-convolution",
        /// The norm of a head's channels, and a swish gate.
        GatedRmsNorm = "gated-rms-norm",
        /// Causal softmax attention, the yardstick.
        Softmax = "softmax",
        /// The mixture-of-experts layer with Qwen3-MoE's router, eight experts a token (or all, if there are fewer):
        /// `heads` experts of inner width `value_dim` over tokens of width `key_dim`.
        MoeLayer = "moe-layer",
        /// One SwiGLU as wide as the experts of a token together, its yardstick.
        DenseSwiGlu = "dense-swiglu",
        /// What comes before its experts: scores, the choice, the weights, the order of the tokens.
        Routing = "moe-routing",
        /// The experts alone, over tokens that are sorted already, with a row of output for every slot.
        SortedExperts = "sorted-experts",
        /// An adaptive computation module with all its learners, as many as a token has experts and as wide.
        Acm = "acm",
        /// The same with its gate, and on average a quarter of the learners a token.
        AcmQuarter = "acm-quarter",
        /// The mixture-of-experts layer when four of five slots are skipped by their share (MoDES).
        SkippingMoe = "moe-layer-fifth",
        /// PACGNet's nano model over pairs of images, `time` (up to a multiple of 32) pixels high and wide. With a backward
        /// pass: a training step, with batch statistics, the assignment, the losses and the optimiser.
        PacgNet = "pacgnet",
        /// Its cross-gating and pyramidal gating by themselves.
        PacgNetGates = "pacgnet-gates",
        /// Its convolutions by themselves, without what comes between them.
        PacgNetConvolutions = "pacgnet-convolutions",
    }
}

named! {
    /// How our code computes an operation.
    Form, "form" {
        /// Tensor operations.
        Portable = "portable",
        /// The device's own kernel.
        Fused = "fused",
    }
}

named! {
    /// What of an operation is computed.
    Pass, "pass" {
        /// The output of whole sequences.
        Forward = "forward",
        /// And the gradients of all inputs, of the sum of the output.
        ForwardBackward = "forward+backward",
        /// One step, from a state to the next.
        Decode = "decode",
    }
}

named! {
    /// The type of the inputs; log decays and states are float32.
    Precision, "dtype" {
        /// float32.
        F32 = "f32",
        /// float16.
        F16 = "f16",
        /// bfloat16.
        Bf16 = "bf16",
    }
}

impl Op {
    /// Whether it is a scan with a matrix state.
    pub fn is_scan(self) -> bool {
        let others = [
            Self::Elementwise,
            Self::SelectiveScan,
            Self::ShortConvolution,
            Self::GatedRmsNorm,
            Self::Softmax,
        ];
        !others.contains(&self) && !self.is_feed_forward() && !self.is_detector()
    }

    /// Whether it is the detector or a part of it.
    pub fn is_detector(self) -> bool {
        matches!(self, Self::PacgNet | Self::PacgNetGates | Self::PacgNetConvolutions)
    }

    /// Whether it is a feed-forward layer of experts, or what one is compared with.
    pub fn is_feed_forward(self) -> bool {
        let trained =
            matches!(self, Self::MoeLayer | Self::Routing | Self::DenseSwiGlu | Self::SortedExperts);
        trained || self.saves()
    }

    /// Whether it is a feed-forward layer at inference, or one that computes a part of it.
    fn saves(self) -> bool {
        matches!(self, Self::Acm | Self::AcmQuarter | Self::SkippingMoe)
    }

    /// Whether our code has this pass in this form.
    pub fn has(self, form: Form, pass: Pass) -> bool {
        match self {
            // Attention is written in tensor operations.
            Self::Softmax => form == Form::Portable,
            // One step is as many tensor operations as it has.
            Self::Elementwise => (form, pass) != (Form::Fused, Pass::Decode),
            // It has no state.
            Self::GatedRmsNorm => pass != Pass::Decode,
            _ if self.saves() => (form, pass) == (Form::Fused, Pass::Forward),
            Self::PacgNetGates => (form, pass) == (Form::Fused, Pass::Forward),
            _ if self.is_feed_forward() || self.is_detector() => form == Form::Fused && pass != Pass::Decode,
            _ => true,
        }
    }

    /// The shape that matters: a recurrence's step does not depend on the steps before.
    pub fn shape_of(self, pass: Pass, shape: Shape) -> Shape {
        match pass {
            Pass::Decode if self != Self::Softmax => shape.with_time(1),
            _ => shape,
        }
    }

    /// Floating-point operations of a forward pass. A scan: `C (K + V) + 4 K V` a token and head
    /// with chunks of C = 64: the products within a chunk, the read of the state and the write. Experts: three
    /// products of `key_dim` by `value_dim` for each of a token's experts.
    pub fn flops(self, pass: Pass, shape: Shape) -> Option<f64> {
        let Shape { batch, time, heads, key_dim, value_dim } = shape;
        let token = match self {
            // What is saved is not counted as computed.
            _ if self.saves() || self == Self::Routing => return None,
            _ if self.is_feed_forward() => 6 * experts_per_token(shape) * key_dim * value_dim,
            _ if self.is_scan() => heads * (CHUNK * (key_dim + value_dim) + 4 * key_dim * value_dim),
            _ => return None,
        };
        (pass == Pass::Forward).then(|| (batch * time * token) as f64)
    }

    /// Bytes that a decode step of a scan cannot avoid: the state, read and written.
    pub fn state_traffic(self, pass: Pass, shape: Shape) -> Option<f64> {
        (self.is_scan() && pass == Pass::Decode).then(|| 2.0 * shape.state_bytes() as f64)
    }
}

/// How many of its experts a layer of this shape sends a token to.
pub fn experts_per_token(shape: Shape) -> usize {
    shape.heads.min(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_unknown_ones_answered_with_the_known() {
        for &op in Op::ALL {
            assert_eq!(op.name().parse(), Ok(op));
        }
        let refused = "mamba".parse::<Op>().expect_err("no such op");
        assert!(refused.contains("`mamba`") && refused.contains("gated-delta-rule, kda"), "{refused}");
        assert_eq!("forward+backward".parse(), Ok(Pass::ForwardBackward));
        assert!("backward".parse::<Pass>().is_err());
    }

    #[test]
    fn operations_and_bytes_are_counted_as_published() {
        let shape = Shape::new(2, 100, 3, 64);
        let token = (64 * 128 + 4 * 64 * 64) as f64;
        assert_eq!(Op::Kda.flops(Pass::Forward, shape), Some(600.0 * token));
        assert_eq!(Op::Kda.flops(Pass::ForwardBackward, shape), None);
        assert_eq!(Op::Softmax.flops(Pass::Forward, shape), None);
        let experts = Shape { value_dim: 256, ..Shape::new(1, 4096, 64, 512) };
        assert_eq!(Op::MoeLayer.flops(Pass::Forward, experts), Op::DenseSwiGlu.flops(Pass::Forward, experts));
        assert_eq!(Op::MoeLayer.flops(Pass::Forward, experts), Some(4096.0 * 6.0 * 512.0 * 2048.0));
        assert_eq!(Op::Gla.state_traffic(Pass::Decode, shape), Some(2.0 * 4.0 * 6.0 * 4096.0));
    }

    #[test]
    fn a_step_does_not_depend_on_the_length_unless_it_is_softmax() {
        let shape = Shape::new(1, 512, 2, 8);
        assert_eq!(Op::Gla.shape_of(Pass::Decode, shape).time, 1);
        assert_eq!(Op::Gla.shape_of(Pass::Forward, shape).time, 512);
        assert_eq!(Op::Softmax.shape_of(Pass::Decode, shape).time, 512);
    }
}
