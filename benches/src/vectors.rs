//! The recurrences with a vector state: the elementwise one, and the selective scan of state-space models.

use burn::tensor::{Device, Distribution, Tensor, activation::softplus};
use gatekit::core::{
    decay::log_sigmoid_stable,
    scan::{ScanForm, elementwise_recurrence, elementwise_recurrence_step},
};
use gatekit_kernels::selective::{SelectiveSpec, selective_scan, selective_scan_step};

use crate::{
    case::Case,
    op::{Form, Pass},
    work::{Inputs, Work, bytes_of},
};

/// Numbers in the state of a channel: what published models use.
const STATE: usize = 16;

pub(crate) fn elementwise(case: Case, device: &Device) -> Work {
    let shape = case.shape;
    let mut inputs = Inputs::new(case, device);
    let dims = [shape.batch, shape.time, shape.channels()];
    let x = inputs.draw(dims, Distribution::Normal(0.0, 1.0));
    let logits = inputs.normal(dims);
    let gate = inputs.take_wide(log_sigmoid_stable(logits));
    if case.pass == Pass::Decode {
        let (x, gate) = (x.narrow(1, 0, 1).squeeze_dim::<2>(1), gate.narrow(1, 0, 1).squeeze_dim::<2>(1));
        let state = Tensor::<2>::zeros([shape.batch, shape.channels()], device);
        return inputs
            .over_steps(state, move |state| elementwise_recurrence_step(x.clone(), gate.clone(), state));
    }
    let form = match case.form {
        Form::Fused => ScanForm::Auto,
        Form::Portable => ScanForm::Portable,
    };
    let bytes = bytes_of(&x);
    inputs.over_sequences(bytes, move || {
        elementwise_recurrence(x.clone(), gate.clone(), None, None, form).output
    })
}

/// Step sizes are soft-plus of normal deviates, decay rates `-1 .. -STATE` as published models start.
pub(crate) fn selective_scan_of(case: Case, device: &Device) -> Work {
    let shape = case.shape;
    let (batch, channels) = (shape.batch, shape.channels());
    let mut inputs = Inputs::new(case, device);
    let dims = [batch, shape.time, channels];
    let x = inputs.draw(dims, Distribution::Normal(0.0, 1.0));
    let logits = inputs.normal(dims);
    let delta = inputs.take_wide(softplus(logits, 1.0).mul_scalar(0.1));
    let rates = Tensor::<1, burn::tensor::Int>::arange(1..STATE as i64 + 1, device).float().neg();
    let a = inputs.take_wide(rates.reshape([1, STATE]).repeat_dim(0, channels));
    let b = inputs.draw([batch, shape.time, STATE], Distribution::Normal(0.0, 1.0));
    let c = inputs.draw([batch, shape.time, STATE], Distribution::Normal(0.0, 1.0));
    let fused = case.form == Form::Fused;
    if case.pass == Pass::Decode {
        let [x, delta, b, c] = [x, delta, b, c].map(|input| input.narrow(1, 0, 1).squeeze_dim::<2>(1));
        let state = Tensor::<3>::zeros([batch, channels, STATE], device);
        return inputs.over_steps(state, move |state| {
            let (y, state) =
                selective_scan_step(x.clone(), delta.clone(), a.clone(), b.clone(), c.clone(), state, fused);
            std::hint::black_box(y);
            state
        });
    }
    let spec = SelectiveSpec { has_initial_state: false, boundaries: None, fused };
    let bytes = bytes_of(&x);
    inputs.over_sequences(bytes, move || {
        selective_scan(x.clone(), delta.clone(), a.clone(), b.clone(), c.clone(), None, spec.clone()).0
    })
}
