//! Mixing slots of a memory into values.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::gate::{GateActivation, GatedSum, GatedSumConfig, gated_sum};
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use super::init;

/// Configuration of [`ValueMixer`].
#[derive(Config, Debug)]
pub struct ValueMixerConfig {
    /// Width d of the model.
    pub n_embd: usize,
    /// Value heads G; each has gates of its own.
    pub n_kv_head: usize,
    /// Channels e of a value head.
    pub head_dim: usize,
    /// Slots M.
    pub move_slots: usize,
    /// Whether the ordinary value has a gate too. Default true; false in LaVE.
    #[config(default = true)]
    pub gate_standard: bool,
    /// Gates are `gate_scale * sigmoid`. Default 2: a gate starts at 1.
    #[config(default = 2.0)]
    pub gate_scale: f64,
}

impl ModuleConfig for ValueMixerConfig {
    type Module = ValueMixer;

    fn try_init(&self, device: &Device) -> Result<ValueMixer, ConfigError> {
        for (field, size) in [
            ("n_embd", self.n_embd),
            ("n_kv_head", self.n_kv_head),
            ("head_dim", self.head_dim),
            ("move_slots", self.move_slots),
        ] {
            init::check_size(field, size)?;
        }
        let activation = GateActivation::ScaledSigmoid(self.gate_scale);
        activation
            .check("gate_scale")
            .map_err(|_| ConfigError::new("gate_scale", self.gate_scale, "a finite number above 0"))?;
        let gates = self.move_slots + usize::from(self.gate_standard);
        let ve_gate = GatedSumConfig::new(self.n_embd, self.n_kv_head, gates)
            .with_activation(activation)
            .try_init(device)?;
        Ok(ValueMixer { ve_gate, gate_standard: self.gate_standard, head_dim: self.head_dim })
    }
}

/// `v~_h = g_{h,0} v_h + sum_{i=1..M} g_{h,i} m_{i,h}` with `g = 2 sigmoid(W_g x)`, head by head.
///
/// Without the gate on the ordinary value, `v~_h = v_h + sum_i g_{h,i} m_{i,h}`. There is no softmax
/// over the slots: all may be open, or all shut. `W_g` starts at 0, so all gates start at 1. Li,
/// "MoVE: Mixture of Value Embeddings" (arXiv 2601.22887).
#[derive(Module, Debug)]
pub struct ValueMixer {
    /// The router, `[G (M + 1), d]` (`[G M, d]` without the gate on the ordinary value).
    pub ve_gate: GatedSum,
    gate_standard: bool,
    head_dim: usize,
}

impl ValueMixer {
    /// Whether the ordinary value has a gate: then it is the first of a head's.
    pub fn gates_standard(&self) -> bool {
        self.gate_standard
    }

    /// Slots M.
    pub fn slots(&self) -> usize {
        self.ve_gate.terms() - usize::from(self.gate_standard)
    }

    /// The gates of `x` `[batch, time, d]`, in (0, 2): `[batch, time, G, M + 1]`, or
    /// `[batch, time, G, M]` without a gate on the ordinary value.
    ///
    /// # Panics
    ///
    /// When `x` does not have `d` channels.
    pub fn gates(&self, x: Tensor<3>) -> Tensor<4> {
        self.ve_gate.gates(x)
    }

    /// The mixed values.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, d]`, the layer's normalised input
    /// - `v`: `[batch, time, G, e]`
    /// - `memory`: `[batch, time, M, G, e]`
    /// - output: `[batch, time, G, e]`
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(&self, x: Tensor<3>, v: Tensor<4>, memory: Tensor<5>) -> Tensor<4> {
        self.mix(self.gates(x), v, memory)
    }

    /// As [`forward`](Self::forward), with the [`gates`](Self::gates) at hand.
    ///
    /// # Panics
    ///
    /// As there.
    pub fn mix(&self, gates: Tensor<4>, v: Tensor<4>, memory: Tensor<5>) -> Tensor<4> {
        self.check_memory(&v, &memory).unwrap_or_else(|error| panic!("ValueMixer: {error}"));
        // Gates are in at least float32; so is the sum, which is rounded once.
        let (dtype, wide) = (v.dtype(), gates.dtype());
        let (v, memory) = (v.cast(wide), memory.cast(wide));
        let mixed = match self.gate_standard {
            true => {
                let standard = gates.clone().narrow(3, 0, 1);
                v * standard + gated_sum(gates.narrow(3, 1, self.slots()), memory)
            }
            false => v + gated_sum(gates, memory),
        };
        mixed.cast(dtype)
    }

    /// Checks a memory against the mixer and the values it is mixed into.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the shape of the values or memory and the shape it needs.
    pub fn check_memory(&self, v: &Tensor<4>, memory: &Tensor<5>) -> Result<(), InputError> {
        let [batch, time, _, _] = v.dims();
        let (heads, dim) = (self.ve_gate.heads(), self.head_dim);
        let refuse = |field: &str, got: &[usize], need: &[usize]| {
            Err(InputError::new(field, format!("shape {got:?}"), format!("{need:?}")))
        };
        if v.dims()[2..] != [heads, dim] {
            return refuse("v", &v.dims(), &[batch, time, heads, dim]);
        }
        let need = [batch, time, self.slots(), heads, dim];
        if memory.dims() != need {
            return refuse("memory", &memory.dims(), &need);
        }
        Ok(())
    }
}
