//! A case made ready to be executed.

use std::hint::black_box;

use burn::module::Module;
use burn::tensor::{DType, Device, Distribution, Tensor};
use rayon::prelude::*;

use crate::{
    case::Case,
    experts, layers,
    op::{Op, Pass, Precision},
    pacgnet, scans, vectors,
};

/// A case with its inputs, on a device.
pub struct Work {
    /// None for what the processor does without a library.
    device: Option<Device>,
    execute: Box<dyn FnMut()>,
    /// Bytes of the inputs.
    pub input_bytes: usize,
    /// Bytes that an execution cannot do without when it holds most: the output; with a backward pass the
    /// gradient of the output, which by then has taken the output's place, and those of the inputs.
    pub result_bytes: usize,
}

impl Work {
    /// Executes so many times, and waits until the device is done.
    ///
    /// # Panics
    ///
    /// When the device fails.
    pub fn execute(&mut self, repeats: usize) {
        for _ in 0..repeats {
            (self.execute)();
        }
        self.finish();
    }

    /// Waits until the device is done.
    ///
    /// # Panics
    ///
    /// When the device fails.
    pub fn finish(&mut self) {
        if let Some(device) = &self.device {
            device.sync().unwrap_or_else(|error| panic!("the device failed: {error:?}"));
        }
    }

    /// Square matrices multiplied.
    pub fn matmul(size: usize, precision: Precision, device: &Device) -> Self {
        let draw = || {
            let values = Distribution::Normal(0.0, 1.0);
            Tensor::<2>::random([size, size], values, (device, DType::F32)).cast(dtype_of(precision))
        };
        let (left, right) = (draw(), draw());
        let input_bytes = bytes_of(&left) + bytes_of(&right);
        let result_bytes = bytes_of(&left);
        let execute = Box::new(move || drop(black_box(left.clone().matmul(right.clone()))));
        Self { device: Some(device.clone()), execute, input_bytes, result_bytes }
    }

    /// So many bytes copied: by a kernel of the device, or by all threads of the processor.
    pub fn copy(bytes: usize, device: Option<&Device>) -> Self {
        let elements = bytes / size_of::<f32>();
        let execute: Box<dyn FnMut()> = match device {
            Some(device) => {
                let from = Tensor::<1>::ones([elements], (device, DType::F32));
                Box::new(move || drop(black_box(from.clone().add_scalar(1.0))))
            }
            None => {
                let (from, mut to) = (vec![1.0_f32; elements], vec![0.0_f32; elements]);
                // Long enough for the stores that go past the caches.
                let part = elements.div_ceil(rayon::current_num_threads()).max(1);
                Box::new(move || {
                    to.par_chunks_mut(part)
                        .zip(from.par_chunks(part))
                        .for_each(|(to, from)| to.copy_from_slice(from));
                    black_box(&mut to);
                })
            }
        };
        Self { device: device.cloned(), execute, input_bytes: bytes, result_bytes: bytes }
    }
}

/// Draws the inputs of `case`, the same for the same seed and device.
pub fn prepare(case: Case, device: &Device, seed: u64) -> Work {
    device.seed(seed);
    match case.op {
        Op::Elementwise => vectors::elementwise(case, device),
        Op::SelectiveScan => vectors::selective_scan_of(case, device),
        Op::ShortConvolution => layers::short_convolution(case, device),
        Op::GatedRmsNorm => layers::gated_rms_norm(case, device),
        Op::Softmax => layers::softmax(case, device),
        op if op.is_feed_forward() => experts::prepare(case, device),
        op if op.is_detector() => pacgnet::prepare(case, device),
        _ => scans::prepare(case, device),
    }
}

/// What inputs are drawn for: where they live and whether they are differentiated.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    device: Device,
    differentiate: bool,
    dtype: DType,
    bytes: usize,
}

impl Inputs {
    pub fn new(case: Case, device: &Device) -> Self {
        let differentiate = case.pass == Pass::ForwardBackward;
        Self { device: device.clone(), differentiate, dtype: dtype_of(case.precision), bytes: 0 }
    }

    /// Values of the case's dtype.
    pub fn draw<const D: usize>(&mut self, dims: [usize; D], distribution: Distribution) -> Tensor<D> {
        let values = Tensor::random(dims, distribution, (&self.device, DType::F32));
        self.take(values)
    }

    /// Makes `values` an input of the case's dtype.
    pub fn take<const D: usize>(&mut self, values: Tensor<D>) -> Tensor<D> {
        let values = values.cast(self.dtype);
        self.take_wide(values)
    }

    /// Makes `values` an input as they are: log decays stay in float32.
    pub fn take_wide<const D: usize>(&mut self, values: Tensor<D>) -> Tensor<D> {
        self.bytes += bytes_of(&values);
        match self.differentiate {
            true => Tensor::from_inner(values).require_grad(),
            false => values,
        }
    }

    /// A module whose parameters are inputs, too: trained where inputs are differentiated.
    pub fn module<M: Module>(&mut self, init: impl FnOnce(&Device) -> M) -> M {
        let module = init(&self.module_device());
        self.bytes += module.num_params() * self.dtype.size();
        match self.differentiate {
            true => module,
            false => module.no_grad(),
        }
    }

    /// A normal deviate everywhere, in float32, not yet an input.
    pub fn normal<const D: usize>(&self, dims: [usize; D]) -> Tensor<D> {
        Tensor::random(dims, Distribution::Normal(0.0, 1.0), (&self.device, DType::F32))
    }

    /// Bytes of what was drawn so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether inputs are differentiated.
    pub fn differentiates(&self) -> bool {
        self.differentiate
    }

    /// The device that modules belong on.
    pub fn module_device(&self) -> Device {
        if self.differentiate { self.device.clone().autodiff() } else { self.device.clone() }
    }

    /// A pass over whole sequences whose output has `output_bytes`.
    pub fn over_sequences<const D: usize>(
        self,
        output_bytes: usize,
        forward: impl Fn() -> Tensor<D> + 'static,
    ) -> Work {
        let (execute, result_bytes): (Box<dyn FnMut()>, _) = match self.differentiate {
            true => {
                (Box::new(move || drop(black_box(forward().sum().backward()))), output_bytes + self.bytes)
            }
            false => (Box::new(move || drop(black_box(forward()))), output_bytes),
        };
        Work { device: Some(self.device), execute, input_bytes: self.bytes, result_bytes }
    }

    /// What `execute` does, whose results have `result_bytes`.
    pub fn work(self, result_bytes: usize, execute: impl FnMut() + 'static) -> Work {
        let execute = Box::new(execute);
        Work { device: Some(self.device), execute, input_bytes: self.bytes, result_bytes }
    }

    /// A step that hands on its state.
    pub fn over_steps<S: 'static>(self, state: S, mut step: impl FnMut(S) -> S + 'static) -> Work {
        let mut held = Some(state);
        let execute = Box::new(move || held = held.take().map(&mut step));
        Work { device: Some(self.device), execute, input_bytes: self.bytes, result_bytes: 0 }
    }
}

fn dtype_of(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
        Precision::Bf16 => DType::BF16,
    }
}

/// Bytes of a tensor's elements.
pub(crate) fn bytes_of<const D: usize>(tensor: &Tensor<D>) -> usize {
    tensor.shape().num_elements() * tensor.dtype().size()
}
