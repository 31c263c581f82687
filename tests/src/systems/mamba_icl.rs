//! `mamba-icl`: the selective scan, alone with its projections and in Mamba's mixer.
// Parameters have the names they are published under, `A_log` and `D` among them.
#![allow(non_snake_case)]

use burn::{
    module::{Module, Param},
    nn::{Linear, LinearConfig},
    tensor::{Device, Tensor},
};
use gatekit::core::{
    ModuleConfig,
    conv::{ShortConvolution, ShortConvolutionConfig},
    decay::softplus_stable,
    scan::{Discretisation, ScanForm, SelectiveOptions, selective_scan},
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Produced, every_form},
    failure::Result,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "selective-ssm", run: run_selective_ssm },
    Row { component: "mamba-mixer", run: run_mamba_mixer },
];

/// The parameters of `selective-ssm`, which project every token.
#[derive(Module, Debug)]
struct Projections {
    W: Param<Tensor<2>>,
    W_B: Param<Tensor<2>>,
    W_C: Param<Tensor<2>>,
}

fn zeros<const D: usize>(dims: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::from_tensor(Tensor::zeros(dims, device))
}

/// The paper's recurrence: `a = -1`, exact discretisation.
fn run_selective_ssm(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let (channels, size): (usize, usize) = (fields.required("channels")?, fields.required("state_dim")?);
        fields.finish()?;
        let device = evaluation.device().clone();
        let parameters = evaluation.load(Projections {
            W: zeros([channels, channels], &device),
            W_B: zeros([size, channels], &device),
            W_C: zeros([size, channels], &device),
        })?;
        let u = evaluation.float::<3>("u")?;
        let initial_state = evaluation.optional_float("initial_state")?;
        let project = |weight: &Param<Tensor<2>>| u.clone().matmul(weight.val().transpose().unsqueeze());
        let (delta, b, c) = (project(&parameters.W), project(&parameters.W_B), project(&parameters.W_C));
        let result = selective_scan(
            u.clone(),
            softplus_stable(delta),
            Tensor::full([channels, size], -1.0, &device),
            b,
            c,
            None,
            None,
            initial_state,
            None,
            &SelectiveOptions { discretisation: Discretisation::ZeroOrderHold, form },
        );
        evaluation.output("o", result.output)?;
        evaluation.output("state", result.final_state)
    })
}

/// The parameters of Mamba's mixer under their published names.
#[derive(Module, Debug)]
struct Mixer {
    in_proj: Linear,
    conv1d: ShortConvolution,
    x_proj: Linear,
    dt_proj: Linear,
    A_log: Param<Tensor<2>>,
    D: Param<Tensor<1>>,
    out_proj: Linear,
}

impl Mixer {
    /// Result, state of the convolution, state of the scan.
    fn forward(
        &self,
        x: Tensor<3>,
        conv_state: Option<Tensor<3>>,
        ssm_state: Option<Tensor<3>>,
        form: ScanForm,
    ) -> (Tensor<3>, Tensor<3>, Tensor<3>) {
        let [channels, size] = self.A_log.dims();
        let projected = self.in_proj.forward(x);
        let (h, z) = (projected.clone().narrow(2, 0, channels), projected.narrow(2, channels, channels));
        let (h, conv_state) = self.conv1d.forward(h, None, conv_state);
        let parts = self.x_proj.forward(h.clone());
        let rank = parts.dims()[2] - 2 * size;
        let part = |start, length| parts.clone().narrow(2, start, length);
        let result = selective_scan(
            h,
            softplus_stable(self.dt_proj.forward(part(0, rank))),
            self.A_log.val().exp().neg(),
            part(rank, size),
            part(rank + size, size),
            Some(self.D.val()),
            Some(z),
            ssm_state,
            None,
            &SelectiveOptions { discretisation: Discretisation::Euler, form },
        );
        (self.out_proj.forward(result.output), conv_state, result.final_state)
    }
}

fn run_mamba_mixer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let hidden_size: usize = fields.required("hidden_size")?;
        let channels: usize = fields.required("intermediate_size")?;
        let size: usize = fields.required("state_size")?;
        let rank: usize = fields.required("time_step_rank")?;
        let kernel_size = fields.required("conv_kernel")?;
        let use_bias: bool = fields.required("use_bias")?;
        let use_conv_bias: bool = fields.required("use_conv_bias")?;
        fields.finish()?;
        let device = evaluation.device().clone();
        let linear = |from, to, bias| LinearConfig::new(from, to).with_bias(bias).init(&device);
        let mixer = evaluation.load(Mixer {
            in_proj: linear(hidden_size, 2 * channels, use_bias),
            conv1d: ShortConvolutionConfig::new(channels, kernel_size)
                .with_bias(use_conv_bias)
                .try_init(&device)?,
            x_proj: linear(channels, rank + 2 * size, false),
            dt_proj: linear(rank, channels, true),
            A_log: zeros([channels, size], &device),
            D: zeros([channels], &device),
            out_proj: linear(channels, hidden_size, use_bias),
        })?;
        let x = evaluation.float("hidden_states")?;
        let conv_state = evaluation.optional_float("conv_state")?;
        let ssm_state = evaluation.optional_float("ssm_state")?;
        let (y, conv_state, ssm_state) = mixer.forward(x, conv_state, ssm_state, form);
        evaluation.output("y", y)?;
        evaluation.output("conv_state", conv_state)?;
        evaluation.output("ssm_state", ssm_state)
    })
}
