//! What stands around the scans.
//!
//! The portable forms of the norm and the convolution are the tensor operations of their equations, as
//! one would write them without this library.

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor, activation::silu};
use gatekit::core::{
    ModuleConfig,
    attention::{AttentionOptions, causal_attention},
    conv::{ShortConvolution, ShortConvolutionConfig},
    norm::GatedRmsNormConfig,
    scan::ScanForm,
};

use crate::{
    case::Case,
    op::{Form, Pass},
    work::{Inputs, Work, bytes_of},
};

/// Taps of a filter: what published models use.
const TAPS: usize = 4;

pub(crate) fn short_convolution(case: Case, device: &Device) -> Work {
    let shape = case.shape;
    let (batch, channels) = (shape.batch, shape.channels());
    let mut inputs = Inputs::new(case, device);
    let x = inputs.draw([batch, shape.time, channels], Distribution::Normal(0.0, 1.0));
    let layer = ShortConvolutionConfig::new(channels, TAPS).init(&inputs.module_device());
    // Made anew every time: a node of the graph serves one backward pass.
    let filters = move |layer: &ShortConvolution| layer.weight.val().reshape([channels, TAPS]);
    if case.pass == Pass::Decode {
        let x = x.narrow(1, 0, 1);
        let state = layer.empty_state(batch, device);
        return match case.form {
            Form::Fused => {
                inputs.over_steps(state, move |state| layer.step(x.clone().squeeze_dim(1), state).1)
            }
            Form::Portable => inputs.over_steps(state, move |state| {
                let window = Tensor::cat(vec![state, x.clone()], 1);
                std::hint::black_box(convolve(window.clone(), &filters(&layer), 1));
                window.narrow(1, 1, TAPS - 1)
            }),
        };
    }
    let (bytes, time) = (bytes_of(&x), shape.time);
    match case.form {
        Form::Fused => inputs.over_sequences(bytes, move || layer.forward(x.clone(), None, None).0),
        Form::Portable => inputs.over_sequences(bytes, move || {
            let before = Tensor::zeros([batch, TAPS - 1, channels], (&x.device(), x.dtype()));
            convolve(Tensor::cat(vec![before, x.clone()], 1), &filters(&layer), time)
        }),
    }
}

/// `silu(sum_j w[c,j] x[t+j,c])`, as shifted products.
fn convolve(x: Tensor<3>, filters: &Tensor<2>, time: usize) -> Tensor<3> {
    let tap = |j: usize| {
        let weight = filters.clone().narrow(1, j, 1).squeeze_dim::<1>(1).unsqueeze::<3>().cast(x.dtype());
        x.clone().narrow(1, j, time) * weight
    };
    silu((1..TAPS).map(tap).fold(tap(0), |sum, product| sum + product))
}

pub(crate) fn gated_rms_norm(case: Case, device: &Device) -> Work {
    let mut inputs = Inputs::new(case, device);
    let x = inputs.draw(case.shape.values(), Distribution::Normal(0.0, 1.0));
    let gate = inputs.draw(case.shape.values(), Distribution::Normal(0.0, 1.0));
    let layer = GatedRmsNormConfig::new(case.shape.value_dim).init(&inputs.module_device());
    let bytes = bytes_of(&x);
    match case.form {
        Form::Fused => inputs.over_sequences(bytes, move || layer.forward(x.clone(), Some(gate.clone()))),
        Form::Portable => inputs.over_sequences(bytes, move || {
            let (weight, eps) = (layer.weight.val().unsqueeze::<4>(), layer.eps);
            let mean = x.clone().square().mean_dim(3);
            let normal = x.clone() / mean.add_scalar(eps).sqrt();
            normal * weight.cast(x.dtype()) * silu(gate.clone())
        }),
    }
}

pub(crate) fn softmax(case: Case, device: &Device) -> Work {
    let shape = case.shape;
    let mut inputs = Inputs::new(case, device);
    let draw = |inputs: &mut Inputs, dims| inputs.draw(dims, Distribution::Normal(0.0, 1.0));
    let steps = if case.pass == Pass::Decode { 1 } else { shape.time };
    let q = draw(&mut inputs, shape.with_time(steps).keys());
    let (k, v) = (draw(&mut inputs, shape.keys()), draw(&mut inputs, shape.values()));
    let bytes = bytes_of(&q);
    let options = AttentionOptions::default();
    inputs.over_sequences(bytes, move || causal_attention(q.clone(), k.clone(), v.clone(), &options, None))
}

/// The gated-linear-attention layer of width `heads * key_dim`, as it is trained: forward, or forward and backward.
pub fn gla_layer(case: Case, device: &Device) -> Work {
    use gatekit::prelude::GatedLinearAttentionConfig;
    let shape = case.shape;
    let width = shape.channels();
    let mut inputs = Inputs::new(case, device);
    let x = inputs.draw([shape.batch, shape.time, width], Distribution::Normal(0.0, 1.0));
    let form = if case.form == Form::Fused { ScanForm::Auto } else { ScanForm::Portable };
    let layer = GatedLinearAttentionConfig::new(width)
        .with_num_heads(shape.heads)
        .with_use_short_conv(true)
        .init(&inputs.module_device())
        .with_scan_form(form);
    let layer = if case.pass == Pass::ForwardBackward { layer } else { layer.no_grad() };
    let bytes = bytes_of(&x);
    inputs.over_sequences(bytes, move || layer.forward(x.clone(), None))
}

/// Mamba's mixer of width `heads * key_dim`, with 16 numbers of state a channel: forward, or forward and backward.
pub fn mamba_mixer(case: Case, device: &Device) -> Work {
    use gatekit::prelude::MambaMixerConfig;
    let shape = case.shape;
    let width = shape.channels();
    let mut inputs = Inputs::new(case, device);
    let x = inputs.draw([shape.batch, shape.time, width], Distribution::Normal(0.0, 1.0));
    let form = if case.form == Form::Fused { ScanForm::Auto } else { ScanForm::Portable };
    let layer = MambaMixerConfig::new(width).init(&inputs.module_device()).with_scan_form(form);
    let layer = if case.pass == Pass::ForwardBackward { layer } else { layer.no_grad() };
    let bytes = bytes_of(&x);
    inputs.over_sequences(bytes, move || layer.forward(x.clone(), None))
}
