//! One step of every sequence: the state is read and written once, in place where nothing else
//! holds its memory.
//!
//! Both products with the decayed state `S'`, with the key and with the query, are made from the
//! elements that a unit keeps in registers. The output needs no product with the new state, since
//!
//! ```text
//! S = S' + k w^T,  w = v or beta (v - S'^T k):   S^T q = S'^T q + (k . q) w
//! ```

use burn::{backend::TensorMetadata, tensor::DType};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, ir::ElemType, prelude::*};

use super::{
    decay::factor,
    launch::{address_type, elem, empty, prepared, vector_size},
};
use crate::{
    cube::float_kind,
    scan::{DecayKind, ScanArguments, StepSpec, WriteKind, portable},
};

/// Columns of a state that one cube updates: whole cache lines of every row.
const COLUMNS: usize = 32;
/// Units of a cube.
const UNITS: usize = 128;

/// Output `[batch, heads, value_dim]` and state, with the old state as `initial_state`.
pub(crate) fn step(arguments: ScanArguments<CubeBackend>, spec: &StepSpec) -> (CubeTensor, CubeTensor) {
    let ScanArguments { q, k, v, log_decay, beta, initial_state } = arguments;
    if !spec.fused
        || ![&q, &v, &log_decay, &beta, &initial_state].into_iter().all(|x| float_kind(x.dtype).is_some())
    {
        return portable::step::<CubeBackend>(
            ScanArguments { q, k, v, log_decay, beta, initial_state },
            spec,
        );
    }
    let dtype = q.dtype;
    let [q, k, v] = [q, k, v].map(|x| prepared(x, dtype));
    let [log_decay, beta] = [log_decay, beta].map(|x| {
        let dtype = x.dtype;
        prepared(x, dtype)
    });
    let state = prepared(initial_state, DType::F32);
    let (q_shape, v_shape) = (q.shape(), v.shape());
    let (rows, key_dim, value_dim) = (q_shape[0] * q_shape[1], q_shape[2], v_shape[2]);

    let vector = vector_size(&state, value_dim).min(vector_size(&v, value_dim));
    let vectors = value_dim / vector;
    let lanes = (COLUMNS / vector).min(vectors.next_power_of_two());
    let slices = (UNITS / lanes).min(key_dim.next_power_of_two());
    let plan = Plan {
        decay: spec.decay,
        write: spec.write,
        key_dim,
        vectors,
        lanes,
        slices,
        blocks: vectors.div_ceil(lanes),
    };

    let output = empty(&v, v_shape, dtype);
    let client = state.client.clone();
    let cube = CubeDim::new_2d(lanes as u32, slices as u32);
    let count = calculate_cube_count_elemwise(&client, rows * plan.blocks * lanes * slices, cube);
    let types = [elem(&q), elem(&log_decay), elem(&beta)];
    let widths = address_type(&[&state, &q, &v]);
    let in_place = state.can_mut();
    let (next, next_argument) = if in_place {
        let alias = state.as_tensor_alias(5).into_buffer_arg();
        (state.clone(), alias)
    } else {
        let next = empty(&state, state.shape(), DType::F32);
        (next.clone(), next.into_buffer_arg())
    };
    // SAFETY: every index is checked against the sizes in the plan, which are the tensors' own.
    unsafe {
        step_kernel::launch_unchecked(
            &client,
            count,
            cube,
            widths,
            vector,
            q.into_buffer_arg(),
            k.into_buffer_arg(),
            v.into_buffer_arg(),
            log_decay.into_buffer_arg(),
            beta.into_buffer_arg(),
            state.into_buffer_arg(),
            next_argument,
            output.clone().into_buffer_arg(),
            rows,
            spec.scale as f32,
            plan,
            types,
        );
    }
    (output, next)
}

/// How a step is spread over units: `lanes` of them share a row of the state, `slices` its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    decay: DecayKind,
    write: WriteKind,
    key_dim: usize,
    /// Vectors of a row of the state.
    vectors: usize,
    lanes: usize,
    slices: usize,
    /// Cubes of a state.
    blocks: usize,
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn step_kernel<E: Float, G: Float, B: Float, N: Size>(
    q: &[E],
    k: &[E],
    v: &[Vector<E, N>],
    log_decay: &[G],
    beta: &[B],
    state: &[Vector<f32, N>],
    next: &mut [Vector<f32, N>],
    output: &mut [Vector<E, N>],
    states: usize,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(E, G, B)] _types: [ElemType; 3],
) {
    let lane = UNIT_POS_X as usize;
    let slice = UNIT_POS_Y as usize;
    let head = CUBE_POS / plan.blocks;
    let column = CUBE_POS % plan.blocks * plan.lanes + lane;
    // The grid may hold more cubes than there are blocks.
    let inside = head < states && column < plan.vectors;
    let own = comptime!(plan.key_dim.div_ceil(plan.slices));

    let mut elements = Array::<Vector<f32, N>>::new(own);
    let mut keys = Array::<f32>::new(own);
    let mut held = Vector::<f32, N>::new(0.0);
    let mut read = Vector::<f32, N>::new(0.0);
    let mut overlap = 0.0f32;
    if inside {
        #[unroll]
        for index in 0..own {
            let row = index * plan.slices + slice;
            if row < plan.key_dim {
                let place = head * plan.key_dim + row;
                let mut x = state[place * plan.vectors + column];
                match comptime!(plan.decay) {
                    DecayKind::None => {}
                    DecayKind::PerHead => x *= Vector::new(factor(f32::cast_from(log_decay[head]))),
                    DecayKind::PerKey => x *= Vector::new(factor(f32::cast_from(log_decay[place]))),
                }
                let key = f32::cast_from(k[place]);
                let query = f32::cast_from(q[place]);
                held += x * Vector::new(key);
                read += x * Vector::new(query);
                overlap += key * query;
                elements[index] = x;
                keys[index] = key;
            }
        }
    }

    // What the slices of rows found, added up by every unit for itself.
    let parts = comptime!(plan.slices * plan.lanes);
    let mut all_held = Shared::<[Vector<f32, N>]>::new_slice(parts);
    let mut all_read = Shared::<[Vector<f32, N>]>::new_slice(parts);
    let mut all_overlap = Shared::<[f32]>::new_slice(parts);
    let part = slice * plan.lanes + lane;
    if comptime!(plan.write == WriteKind::Delta) {
        all_held[part] = held;
    }
    all_read[part] = read;
    all_overlap[part] = overlap;
    sync_cube();

    if inside {
        let values = head * plan.vectors + column;
        let mut write = Vector::<f32, N>::cast_from(v[values]);
        if comptime!(plan.write == WriteKind::Delta) {
            for slice in 0..plan.slices {
                write -= all_held[slice * plan.lanes + lane];
            }
            write *= Vector::new(f32::cast_from(beta[head]));
        }
        #[unroll]
        for index in 0..own {
            let row = index * plan.slices + slice;
            if row < plan.key_dim {
                let place = head * plan.key_dim + row;
                next[place * plan.vectors + column] = elements[index] + write * Vector::new(keys[index]);
            }
        }
        if slice == 0 {
            let mut read = Vector::<f32, N>::new(0.0);
            let mut overlap = 0.0f32;
            for slice in 0..plan.slices {
                read += all_read[slice * plan.lanes + lane];
                overlap += all_overlap[slice * plan.lanes + lane];
            }
            let out = (read + write * Vector::new(overlap)) * Vector::new(scale);
            output[values] = Vector::cast_from(out);
        }
    }
}
