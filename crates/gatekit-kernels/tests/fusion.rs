//! Under Burn's kernel fusion every operation runs the kernel that it runs without: its results are the same to the
//! last bit, and of the shapes and types that fusion was told before.
#![cfg(all(feature = "fusion", feature = "wgpu"))]
// Burn marks its `NdArray` backend as deprecated; what the tests share names it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::{
    backend::{Dispatch, DispatchDevice, TensorMetadata, ops::FloatTensorOps, tensor::FloatTensor},
    tensor::{DType, Device, DeviceKind, Tensor, TensorData, read_sync},
};
use burn_cubecl::CubeBackend;
use gatekit_kernels::{
    channels::{ChannelBackend, ChannelNormSpec},
    conv::{ConvolutionBackend, ConvolutionSpec},
    convolution::{ImageConvolutionBackend, ImageConvolutionSpec, ImageGradients},
    gate::{Activation, GateBackend},
    grouped::{ExpertSpec, GroupedBackend, SortedSlots},
    norm::{NormBackend, NormSpec},
    rows::{RowMap, RowsBackend},
    scan::{DecayKind, ElementwiseSpec, GradientOf, ScanBackend, ScanSpec, StepSpec, WriteKind},
    selective::{SelectiveBackend, SelectiveSpec},
};
use support::Numbers;

const RESULTS: [GradientOf; 2] = [GradientOf::Output, GradientOf::FinalState];

fn device() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

/// Where the numbers of a tensor are: anything, log decays, step sizes.
const ANY: [f64; 2] = [-1.0, 1.0];
const NEGATIVE: [f64; 2] = [-1.0, 0.0];
const POSITIVE: [f64; 2] = [0.0, 1.0];

struct Source(Numbers);

impl Source {
    fn tensor<const D: usize>(
        &mut self,
        dims: [usize; D],
        [low, high]: [f64; 2],
        dtype: DType,
    ) -> TensorData {
        let numbers = self.0.many(dims.iter().product());
        let values = numbers.iter().map(|x| low + 0.5 * (x + 1.0) * (high - low)).collect::<Vec<f64>>();
        TensorData::new(values, dims).convert_dtype(dtype)
    }
}

/// The types of the main inputs and of the others: float32, and float16 where the device stores it.
fn types() -> Vec<[DType; 2]> {
    let mut types = vec![[DType::F32; 2]];
    if device().supports_dtype(DType::F16) {
        types.extend([[DType::F16; 2], [DType::F16, DType::F32]]);
    }
    types
}

/// The single zero for an absent tensor.
fn absent(dtype: DType) -> TensorData {
    TensorData::new(vec![0.0], [1]).convert_dtype(dtype)
}

/// The tensor under fusion.
fn queued(data: &TensorData) -> FloatTensor<Dispatch> {
    macro_rules! of_rank {
        ($($rank:literal),*) => {
            match data.shape().num_dims() {
                $($rank => Tensor::<$rank>::from_data(data.clone(), (&device(), data.dtype())).into_dispatch(),)*
                rank => panic!("no argument has {rank} axes"),
            }
        };
    }
    of_rank!(1, 2, 3, 4)
}

/// The tensor on the backend below.
fn direct(data: &TensorData) -> FloatTensor<CubeBackend> {
    let device = device();
    let DispatchDevice::Cube(device) = device.as_dispatch() else { panic!("{device:?} is no CubeCL device") };
    CubeBackend::float_from_data(data.clone(), device)
}

fn read(tensor: FloatTensor<CubeBackend>) -> TensorData {
    read_sync(CubeBackend::float_into_data(tensor)).expect("a result")
}

#[track_caller]
fn same(name: &str, queued: FloatTensor<Dispatch>, direct: FloatTensor<CubeBackend>) {
    assert_eq!(queued.shape(), direct.shape(), "shape of {name}");
    assert_eq!(queued.dtype(), direct.dtype(), "type of {name}");
    let got = read_sync(Dispatch::float_into_data(queued)).expect("a result");
    let want = read(direct);
    assert_eq!(got.dtype(), want.dtype(), "type of the values of {name}");
    assert!(got.bytes() == want.bytes(), "{name}: {got}, not {want}");
}

/// Runs an operation under fusion and on the backend below, and compares its result, or those listed.
macro_rules! compare {
    ($backend:ident :: $operation:ident [$($tensor:expr),*] ($($other:expr),*)) => {
        let fused = <Dispatch as $backend>::$operation($(queued($tensor),)* $($other),*);
        let plain = <CubeBackend as $backend>::$operation($(direct($tensor),)* $($other),*);
        same(stringify!($operation), fused, plain);
    };
    ($backend:ident :: $operation:ident [$($tensor:expr),*] ($($other:expr),*) -> $($index:tt)*) => {
        let fused = <Dispatch as $backend>::$operation($(queued($tensor),)* $($other),*);
        let plain = <CubeBackend as $backend>::$operation($(direct($tensor),)* $($other),*);
        $(same(&format!("{}, result {}", stringify!($operation), $index), fused.$index, plain.$index);)*
    };
}

/// The boundaries of packed sequences in rows of `time` steps, and how many sequences those are.
fn packings(batch: usize, time: usize) -> [(Option<Arc<[usize]>>, usize, usize); 2] {
    [(None, batch, batch), (Some(Arc::from([0, 7, time])), 1, 2)]
}

#[test]
fn matrix_scans() {
    let (time, heads, key_dim, value_dim) = (70, 2, 5, 12);
    for [main, other] in types() {
        for decay in [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey] {
            for write in [WriteKind::Additive, WriteKind::Delta] {
                for (boundaries, batch, sequences) in packings(2, time) {
                    for has_initial_state in [false, true] {
                        let mut source = Source(Numbers(1));
                        let spec = ScanSpec {
                            scale: 0.5,
                            decay,
                            write,
                            has_initial_state,
                            boundaries: boundaries.clone(),
                            chunk_size: 64,
                            sub_chunk_size: 16,
                            fused: true,
                        };
                        let row = [batch, time, heads];
                        let [q, k] =
                            [(); 2].map(|()| source.tensor([batch, time, heads, key_dim], ANY, main));
                        let v = source.tensor([batch, time, heads, value_dim], ANY, main);
                        let g = match decay {
                            DecayKind::None => absent(main),
                            DecayKind::PerHead => source.tensor([batch, time, heads, 1], NEGATIVE, other),
                            DecayKind::PerKey => {
                                source.tensor([batch, time, heads, key_dim], NEGATIVE, other)
                            }
                        };
                        let beta = match write {
                            WriteKind::Additive => absent(main),
                            WriteKind::Delta => source.tensor(row, POSITIVE, other),
                        };
                        let states = [sequences, heads, key_dim, value_dim];
                        let s =
                            if has_initial_state { source.tensor(states, ANY, other) } else { absent(main) };
                        compare!(ScanBackend::matrix_scan [&q, &k, &v, &g, &beta, &s] (spec.clone()) -> 0 1);
                        for of in RESULTS {
                            let gradient = match of {
                                GradientOf::Output => source.tensor(v.shape().dims::<4>(), ANY, main),
                                GradientOf::FinalState => source.tensor(states, ANY, DType::F32),
                            };
                            compare!(
                                ScanBackend::matrix_scan_backward [&q, &k, &v, &g, &beta, &s, &gradient]
                                (of, spec.clone()) -> 0 1 2 3 4 5
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_portable_form_rounds_elsewhere() {
    // Else results that are the same to the last bit would not tell which of the two fusion runs.
    let mut source = Source(Numbers(2));
    let [q, k, v] = [(); 3].map(|()| source.tensor([1, 70, 2, 16], ANY, DType::F32));
    let g = source.tensor([1, 70, 2, 16], NEGATIVE, DType::F32);
    let none = absent(DType::F32);
    let [fused, portable] = [true, false].map(|fused| {
        let spec = ScanSpec {
            scale: 0.25,
            decay: DecayKind::PerKey,
            write: WriteKind::Additive,
            has_initial_state: false,
            boundaries: None,
            chunk_size: 64,
            sub_chunk_size: 16,
            fused,
        };
        let [q, k, v, g, beta, state] = [&q, &k, &v, &g, &none, &none].map(direct);
        read(CubeBackend::matrix_scan(q, k, v, g, beta, state, spec).0)
    });
    assert!(fused.bytes() != portable.bytes());
}

#[test]
fn grouped_products() {
    // The second group has no rows.
    let offsets: Arc<[usize]> = Arc::from([0, 3, 3, 7]);
    for [main, _] in types() {
        let mut source = Source(Numbers(9));
        let x = source.tensor([7, 5], ANY, main);
        let weight = source.tensor([3, 4, 5], ANY, main);
        let gradient = source.tensor([7, 4], ANY, main);
        compare!(GroupedBackend::grouped_matmul[&x, &weight](offsets.clone()));
        compare!(GroupedBackend::grouped_matmul_backward[&x, &weight, &gradient](offsets.clone()) -> 0 1);
    }
}

#[test]
fn gated_experts() {
    // Five tokens with three places each; expert 1 has no slot, two places are of no expert.
    let chosen = [Some(0), None, Some(2), Some(2), Some(0), Some(3), Some(3), Some(2), Some(0)];
    let chosen: Vec<Option<usize>> =
        chosen.into_iter().chain([None, Some(3), Some(0), Some(2), Some(3), Some(0)]).collect();
    let of_expert =
        |expert| -> Vec<usize> { (0..chosen.len()).filter(|slot| chosen[*slot] == Some(expert)).collect() };
    let groups: Vec<Vec<usize>> = (0..4).map(of_expert).collect();
    let offsets = (0..=4).map(|expert| groups[..expert].iter().map(Vec::len).sum()).collect();
    let order = groups.concat();
    let rows = order.iter().map(|slot| slot / 3).collect();
    let slots = Arc::new(SortedSlots::new(5, 15, rows, order, offsets));
    for [main, other] in types() {
        let mut source = Source(Numbers(10));
        let x = source.tensor([5, 6], ANY, main);
        let weights = source.tensor([5, 3], POSITIVE, other);
        let gate_up = source.tensor([4, 16, 6], ANY, main);
        let down = source.tensor([4, 6, 8], ANY, main);
        let gradient = source.tensor([5, 6], ANY, main);
        let kept = source.tensor([13, 16], ANY, main);
        for activation in [Activation::Swish, Activation::Sigmoid] {
            let spec = ExpertSpec { slots: slots.clone(), activation };
            compare!(GroupedBackend::gated_experts[&x, &weights, &gate_up, &down](spec.clone()));
            compare!(GroupedBackend::gated_experts_kept[&x, &weights, &gate_up, &down](spec.clone()) -> 0 1);
            compare!(GroupedBackend::gated_experts_backward[&x, &weights, &gate_up, &down, &kept, &gradient](
                spec.clone()
            ) -> 0 1 2 3);
        }
    }
}

#[test]
fn rows() {
    for [main, _] in types() {
        let x = Source(Numbers(11)).tensor([6, 5], ANY, main);
        let maps = [RowMap::picking(6, vec![5, 0, 0]), RowMap::adding(&[2, 0, 2, 2, 3, 0], 4)];
        for map in maps.map(Arc::new) {
            compare!(RowsBackend::combine_rows[&x](map.clone()));
        }
    }
}

#[test]
fn image_convolutions() {
    let mut source = Source(Numbers(12));
    let mut draw = |dims| source.tensor(dims, ANY, DType::F32);
    let (x, whole, own) = (draw([2, 4, 5, 7]), draw([6, 4, 3, 3]), draw([4, 1, 3, 3]));
    for (weight, groups, stride) in [(&whole, 1, 1), (&whole, 1, 2), (&own, 4, 1)] {
        let outputs = weight.shape()[0];
        let row = |numbers| Source(Numbers(numbers)).tensor([outputs], ANY, DType::F32);
        let (scale, bias) = (row(13), row(20));
        let activation = Some(Activation::Swish);
        let (has_scale, has_bias) = (true, true);
        let spec = ImageConvolutionSpec { stride, padding: 1, groups, has_scale, has_bias, activation };
        compare!(ImageConvolutionBackend::image_convolution[&x, weight, &scale, &bias](spec));
        let spec = ImageConvolutionSpec { has_scale: false, activation: None, ..spec };
        let size = [2, outputs, 4 / stride + 1, 6 / stride + 1];
        let gradient = Source(Numbers(14)).tensor(size, ANY, DType::F32);
        for all in [true, false] {
            let wanted = ImageGradients { x: all, weight: true, bias: all };
            compare!(ImageConvolutionBackend::image_convolution_backward[&x, weight, &gradient](
                spec, wanted
            ) -> 0 1 2);
        }
    }
}

#[test]
fn channels() {
    let mut source = Source(Numbers(15));
    let mut map = |channels| source.tensor([2, channels, 9], ANY, DType::F32);
    let ([x, other, gate, guidance], spatial, weights) = ([(); 4].map(|()| map(4)), map(1), map(2));
    let mut row = |numbers| Source(Numbers(numbers)).tensor([4], POSITIVE, DType::F32);
    let [gamma, beta, mean, variance] = [16, 17, 18, 19].map(&mut row);
    compare!(ChannelBackend::channel_statistics[&x]() -> 0 1);
    for of_x in [false, true] {
        let spec = ChannelNormSpec { epsilon: 1e-3, of_x, activation: Some(Activation::Swish) };
        compare!(ChannelBackend::channel_norm[&x, &gamma, &beta, &mean, &variance](spec));
        compare!(ChannelBackend::channel_norm_backward[&x, &gamma, &beta, &mean, &variance, &other](
            spec
        ) -> 0 1 2);
    }
    compare!(ChannelBackend::merge_maps[&x, &other, &spatial, &gate, &guidance, &gamma, &beta]());
    compare!(ChannelBackend::mix_maps[&x, &weights, &spatial]());
}

#[test]
fn steps() {
    let (batch, heads, key_dim, value_dim) = (3, 2, 5, 12);
    for [main, other] in types() {
        for decay in [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey] {
            for write in [WriteKind::Additive, WriteKind::Delta] {
                let mut source = Source(Numbers(3));
                let [q, k] = [(); 2].map(|()| source.tensor([batch, heads, key_dim], ANY, main));
                let v = source.tensor([batch, heads, value_dim], ANY, main);
                let g = match decay {
                    DecayKind::None => absent(main),
                    DecayKind::PerHead => source.tensor([batch, heads, 1], NEGATIVE, other),
                    DecayKind::PerKey => source.tensor([batch, heads, key_dim], NEGATIVE, other),
                };
                let beta = match write {
                    WriteKind::Additive => absent(main),
                    WriteKind::Delta => source.tensor([batch, heads], POSITIVE, other),
                };
                let s = source.tensor([batch, heads, key_dim, value_dim], ANY, other);
                let spec = StepSpec { scale: 0.5, decay, write, fused: true };
                compare!(ScanBackend::matrix_scan_step [&q, &k, &v, &g, &beta, &s] (spec) -> 0 1);
            }
        }
        let mut source = Source(Numbers(4));
        let [channels, size] = [12, 5];
        let x = source.tensor([batch, channels], ANY, main);
        let delta = source.tensor([batch, channels], POSITIVE, other);
        let a = source.tensor([channels, size], NEGATIVE, other);
        let [b, c] = [(); 2].map(|()| source.tensor([batch, size], ANY, main));
        let s = source.tensor([batch, channels, size], ANY, other);
        compare!(SelectiveBackend::selective_scan_step [&x, &delta, &a, &b, &c, &s] (true) -> 0 1);
    }
}

#[test]
fn elementwise_scans() {
    let (time, dim) = (70, 12);
    for [main, other] in types() {
        for (boundaries, batch, sequences) in packings(2, time) {
            for has_initial_state in [false, true] {
                let mut source = Source(Numbers(5));
                let spec = ElementwiseSpec { has_initial_state, boundaries: boundaries.clone(), fused: true };
                let [x, of_output] = [(); 2].map(|()| source.tensor([batch, time, dim], ANY, main));
                let g = source.tensor([batch, time, dim], NEGATIVE, other);
                let states = [sequences, dim];
                let s = if has_initial_state { source.tensor(states, ANY, other) } else { absent(main) };
                let of_state = source.tensor(states, ANY, DType::F32);
                compare!(ScanBackend::elementwise_scan [&x, &g, &s] (spec.clone()) -> 0 1);
                for (of, gradient) in RESULTS.into_iter().zip([&of_output, &of_state]) {
                    compare!(
                        ScanBackend::elementwise_scan_backward [&x, &g, &s, gradient] (of, spec.clone()) -> 0 1 2
                    );
                }
            }
        }
    }
}

#[test]
fn selective_scans() {
    let (time, channels, size) = (70, 12, 5);
    for [main, other] in types() {
        for (boundaries, batch, sequences) in packings(2, time) {
            for has_initial_state in [false, true] {
                let mut source = Source(Numbers(6));
                let spec = SelectiveSpec { has_initial_state, boundaries: boundaries.clone(), fused: true };
                let [x, of_output] = [(); 2].map(|()| source.tensor([batch, time, channels], ANY, main));
                let delta = source.tensor([batch, time, channels], POSITIVE, other);
                let a = source.tensor([channels, size], NEGATIVE, other);
                let [b, c] = [(); 2].map(|()| source.tensor([batch, time, size], ANY, main));
                let states = [sequences, channels, size];
                let s = if has_initial_state { source.tensor(states, ANY, other) } else { absent(main) };
                let of_state = source.tensor(states, ANY, DType::F32);
                compare!(SelectiveBackend::selective_scan [&x, &delta, &a, &b, &c, &s] (spec.clone()) -> 0 1);
                for (of, gradient) in RESULTS.into_iter().zip([&of_output, &of_state]) {
                    compare!(
                        SelectiveBackend::selective_scan_backward [&x, &delta, &a, &b, &c, &s, gradient]
                        (of, spec.clone()) -> 0 1 2 3 4 5
                    );
                }
            }
        }
    }
}

#[test]
fn gates_and_norms() {
    let dims = [3, 20];
    for [main, other] in types() {
        let mut source = Source(Numbers(7));
        let [x, gradient] = [(); 2].map(|()| source.tensor(dims, ANY, main));
        let z = source.tensor(dims, ANY, other);
        let weight = source.tensor([dims[1]], ANY, other);
        compare!(GateBackend::gated_product [&x, &z] (Activation::Swish));
        compare!(GateBackend::gated_product_backward [&x, &z, &gradient] (Activation::Swish) -> 0 1);
        for floor in [None, Some(-0.05)] {
            compare!(GateBackend::log_sigmoid_scaled[&x](16.0, floor));
            compare!(GateBackend::log_sigmoid_scaled_backward [&x, &gradient] (16.0, floor));
        }
        for (gate, z) in [(None, &absent(main)), (Some(Activation::Sigmoid), &z)] {
            let spec = NormSpec { eps: 1e-3, gate };
            compare!(NormBackend::rms_norm [&x, &weight, z] (spec));
            compare!(NormBackend::rms_norm_backward [&x, &weight, z, &gradient] (spec) -> 0 1 2);
        }
    }
}

#[test]
fn convolutions() {
    let (time, channels, taps) = (70, 12, 4);
    for [main, other] in types() {
        for (boundaries, batch, sequences) in packings(2, time) {
            for is_full in [false, true] {
                let mut source = Source(Numbers(8));
                let [has_bias, has_state, silu] = [is_full; 3];
                let spec = ConvolutionSpec { has_bias, has_state, boundaries: boundaries.clone(), silu };
                let [x, gradient] = [(); 2].map(|()| source.tensor([batch, time, channels], ANY, main));
                let weight = source.tensor([channels, taps], ANY, other);
                let bias = if has_bias { source.tensor([channels], ANY, other) } else { absent(main) };
                let states = [sequences, taps - 1, channels];
                let state = if has_state { source.tensor(states, ANY, other) } else { absent(main) };
                compare!(ConvolutionBackend::short_convolution [&x, &weight, &bias, &state] (spec.clone()));
                compare!(
                    ConvolutionBackend::short_convolution_backward [&x, &weight, &bias, &state, &gradient]
                    (spec.clone()) -> 0 1 2 3
                );
            }
        }
    }
}
