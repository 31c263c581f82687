//! The elementwise recurrence: a vector state, every channel on its own.

use burn::tensor::{DType, Tensor};
use gatekit_kernels::scan::{ElementwiseSpec, elementwise_scan};

use super::{
    ScanForm,
    check::{log_decay, rows, same},
};
use crate::sequence::Boundaries;

/// Result of [`elementwise_recurrence`].
#[derive(Debug, Clone)]
pub struct ElementwiseOutput {
    /// `h_t` of every step, `[batch, time, dim]`, in the dtype of `x`.
    pub output: Tensor<3>,
    /// `h_T`, `[batch, dim]`, or `[segments, dim]` for packed sequences, in float32 (float64 for
    /// float64 inputs).
    pub final_state: Tensor<2>,
}

/// `h_t = exp(g_t) * h_{t-1} + x_t`, elementwise (HGRN: Qin et al. 2023, arXiv 2311.04823).
///
/// # Shapes
///
/// - `x`, `log_gate`: `[batch, time, dim]`, log gates at most 0
/// - `initial_state`: `[batch, dim]`, or `[segments, dim]` with `boundaries`; zero when absent
///
/// # Panics
///
/// When shapes disagree or `time` is 0. Debug builds also refuse NaN or positive log gates.
pub fn elementwise_recurrence(
    x: Tensor<3>,
    log_gate: Tensor<3>,
    initial_state: Option<Tensor<2>>,
    boundaries: Option<&Boundaries>,
    form: ScanForm,
) -> ElementwiseOutput {
    let [batch, time, dim] = x.dims();
    assert!(time > 0 && batch > 0, "scan: `x` has no time step or an empty batch, shape {:?}", x.dims());
    same("log_gate", log_gate.dims(), "x", x.dims());
    log_decay(&log_gate);
    let states = rows(batch, time, boundaries);
    if let Some(state) = &initial_state {
        same("initial_state", state.dims(), "[batch or segments, dim]", [states, dim]);
    }

    let (output, final_state) = match form {
        ScanForm::Recurrent => {
            let dtype = x.dtype();
            let (output, final_state) = recurrent(x, log_gate, initial_state, boundaries);
            (output.cast(dtype), final_state)
        }
        form => {
            let spec = ElementwiseSpec {
                has_initial_state: initial_state.is_some(),
                boundaries: boundaries.map(Boundaries::shared),
                fused: form == ScanForm::Auto,
            };
            elementwise_scan(x, log_gate, initial_state, spec)
        }
    };
    ElementwiseOutput { output, final_state }
}

/// One step: `exp(log_gate) * state + x`, all `[batch, dim]`.
///
/// # Panics
///
/// When shapes disagree.
pub fn elementwise_recurrence_step(x: Tensor<2>, log_gate: Tensor<2>, state: Tensor<2>) -> Tensor<2> {
    same("log_gate", log_gate.dims(), "x", x.dims());
    same("state", state.dims(), "x", x.dims());
    let wide = state.dtype();
    log_gate.cast(wide).exp() * state + x.cast(wide)
}

fn recurrent(
    x: Tensor<3>,
    log_gate: Tensor<3>,
    initial_state: Option<Tensor<2>>,
    boundaries: Option<&Boundaries>,
) -> (Tensor<3>, Tensor<2>) {
    let [batch, time, dim] = x.dims();
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let whole = [0, time];
    let cu_seqlens = boundaries.map_or(&whole[..], Boundaries::cu_seqlens);
    let mut outputs = Vec::with_capacity(time);
    let mut states = Vec::new();
    for (segment, ends) in cu_seqlens.windows(2).enumerate() {
        let mut state = match &initial_state {
            Some(state) if boundaries.is_some() => state.clone().narrow(0, segment, 1).cast(wide),
            Some(state) => state.clone().cast(wide),
            None => Tensor::zeros([batch, dim], (&x.device(), wide)),
        };
        for t in ends[0]..ends[1] {
            let at = |tensor: &Tensor<3>| tensor.clone().narrow(1, t, 1).squeeze_dim(1);
            state = elementwise_recurrence_step(at(&x), at(&log_gate), state);
            outputs.push(state.clone());
        }
        states.push(state);
    }
    (Tensor::stack(outputs, 1), Tensor::cat(states, 0))
}
