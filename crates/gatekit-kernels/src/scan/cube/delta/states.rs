//! The passes over the chunks of a sequence, which hold the state, or its gradient, in shared memory.
//!
//! ```text
//! forward:    x = u - w S                     S' = diag(whole) S + k_end^T x
//! in reverse: x = p^T do + k_end D            D' = diag(whole) D + q_start^T do - w^T x
//! ```
//!
//! `x` is what the steps write, and in reverse its gradient; `D` is the gradient of the state. A cube
//! holds some columns of the state of a sequence and head, since columns do not meet.

use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::layout::{CHUNK, Place, Sizes, locate, state_view};
use super::tiles::{DEPTH, Product, SIDE, Tile, UNITS, View, fill, multiply, scale};
use crate::scan::DecayKind;

/// How the passes are tiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pass {
    pub sizes: Sizes,
    /// Whether the pass starts from a given state, not from zero.
    pub initial: bool,
}

/// Keys by steps.
const KEYS: Tile = Tile::by_columns(DEPTH, CHUNK);
/// Steps by keys.
const STEPS: Tile = Tile::by_rows(DEPTH, CHUNK);

/// The largest width of a key: wider states have too few columns in shared memory.
pub(super) const MAX_KEY_DIM: usize = 256;

impl Pass {
    /// Columns of the state that a cube holds.
    fn columns(self) -> usize {
        if self.sizes.key_dim <= 128 { 32 } else { 16 }
    }

    /// Cubes of a state.
    pub fn blocks(self) -> usize {
        self.sizes.value_dim.div_ceil(self.columns())
    }

    /// Blocks of keys.
    fn key_blocks(self) -> usize {
        self.sizes.key_dim.div_ceil(CHUNK)
    }

    /// The state, padded to whole blocks of keys.
    fn state(self) -> Tile {
        Tile::by_rows(self.key_blocks() * CHUNK, self.columns())
    }

    /// The rows of a chunk.
    fn rows(self) -> Tile {
        Tile::by_rows(CHUNK, self.columns())
    }

    /// Some rows of a chunk.
    fn some_rows(self) -> Tile {
        Tile::by_rows(DEPTH, self.columns())
    }

    /// Both products have these sizes.
    fn product(self) -> Product {
        Product::of(KEYS, self.state())
    }
}

/// The part of a sequence's states that a cube works on.
#[derive(CubeType, Clone, Copy)]
struct Part {
    first_chunk: usize,
    chunks: usize,
    /// Of the sequence's states between its chunks, the first.
    first_state: usize,
    /// The sequence's state among those given and returned.
    outer_state: usize,
    head: usize,
    /// First column.
    column: usize,
}

#[cube]
fn part(sequences: &[u32], #[comptime] pass: Pass) -> Part {
    let blocks = comptime!(pass.blocks());
    let sequence = CUBE_POS / comptime!(blocks * pass.sizes.heads);
    let head = CUBE_POS / blocks % pass.sizes.heads;
    let first_chunk = sequences[sequence * 2] as usize;
    Part {
        first_chunk,
        chunks: sequences[sequence * 2 + 1] as usize,
        first_state: (first_chunk + sequence) * pass.sizes.heads + head,
        outer_state: sequence * pass.sizes.heads + head,
        head,
        column: CUBE_POS % blocks * comptime!(pass.columns()),
    }
}

/// Writes the state in shared memory.
#[cube]
fn save(state: &Shared<[f32]>, to: &mut [f32], view: &View, #[comptime] pass: Pass) {
    let tile = comptime!(pass.state());
    for step in 0..comptime!(tile.rows * tile.columns / UNITS) {
        let index = step * UNITS + UNIT_POS as usize;
        let (row, column) = (index / tile.columns, index % tile.columns);
        if row < view.rows && column < view.columns {
            to[view.origin + row * view.row + column] = state[row * comptime!(tile.stride()) + column];
        }
    }
}

/// `state = diag(whole) state + sum` for the block of keys that starts at `key`.
#[cube]
fn update(
    state: &mut Shared<[f32]>,
    sum: &Array<f32>,
    from_start: &[f32],
    place: &Place,
    key: usize,
    #[comptime] pass: Pass,
) {
    let product = comptime!(pass.product());
    let (a, b) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    let decays: View = place.decays(pass.sizes);
    #[unroll]
    for x in 0..product.rows {
        let row = key + a + x * SIDE;
        let mut whole = 1.0f32.runtime();
        if comptime!(pass.sizes.decay != DecayKind::None) {
            if row < pass.sizes.key_dim {
                whole = from_start[decays.origin + (place.steps - 1) * decays.row + row * decays.column];
            }
        }
        #[unroll]
        for y in 0..product.columns {
            let at = row * comptime!(pass.state().stride()) + b + y * SIDE;
            state[at] = state[at] * whole + sum[comptime!(x * product.columns + y)];
        }
    }
}

/// `sum += left^T x` over the steps of a chunk, for a block of keys: `left` are the steps' keys,
/// `x` their rows in shared memory.
#[cube]
fn add_outer<E: Float>(
    sum: &mut Array<f32>,
    tile: &mut Shared<[f32]>,
    left: &[E],
    left_view: &View,
    factor: &[f32],
    factor_view: &View,
    x: &Shared<[f32]>,
    #[comptime] decayed: bool,
    #[comptime] pass: Pass,
) {
    for slice in 0..comptime!(CHUNK / DEPTH) {
        let step = slice * DEPTH;
        sync_cube();
        fill(tile, left, &left_view.from(step, 0usize), STEPS);
        if decayed {
            scale(tile, factor, &factor_view.from(step, 0usize), STEPS);
        }
        sync_cube();
        multiply(sum, &*tile, x, step, comptime!(pass.product()));
    }
}

/// `sum += left state`, `left` a matrix over steps and keys.
#[cube]
fn add_read<E: Float>(
    sum: &mut Array<f32>,
    tile: &mut Shared<[f32]>,
    left: &[E],
    left_view: &View,
    factor: &[f32],
    factor_view: &View,
    state: &Shared<[f32]>,
    #[comptime] decayed: bool,
    #[comptime] pass: Pass,
) {
    for slice in 0..comptime!(pass.sizes.key_dim.div_ceil(DEPTH)) {
        let key = slice * DEPTH;
        sync_cube();
        fill(tile, left, &left_view.transpose().from(key, 0usize), KEYS);
        if decayed {
            scale(tile, factor, &factor_view.transpose().from(key, 0usize), KEYS);
        }
        sync_cube();
        multiply(sum, &*tile, state, key, comptime!(pass.product()));
    }
}

/// `rows = base + sign * sum`, in memory and in shared memory.
#[cube]
fn put_rows(
    rows: &mut Shared<[f32]>,
    sum: &Array<f32>,
    base: &mut [f32],
    view: &View,
    sign: f32,
    #[comptime] pass: Pass,
) {
    let product = comptime!(pass.product());
    let (a, b) = (UNIT_POS as usize / SIDE, UNIT_POS as usize % SIDE);
    #[unroll]
    for x in 0..product.rows {
        #[unroll]
        for y in 0..product.columns {
            let (row, column) = (a + x * SIDE, b + y * SIDE);
            let mut value = 0.0f32.runtime();
            if row < view.rows && column < view.columns {
                let at = view.origin + row * view.row + column;
                value = base[at] + sign * sum[comptime!(x * product.columns + y)];
                base[at] = value;
            }
            rows[row * comptime!(pass.rows().stride()) + column] = value;
        }
    }
}

/// Replaces `u` by what the steps write, and writes the states before every chunk and at the end.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward_kernel<E: Float>(
    chunks: &[u32],
    sequences: &[u32],
    k: &[E],
    w: &[f32],
    from_start: &[f32],
    to_end: &[f32],
    initial: &[f32],
    writes: &mut [f32],
    states: &mut [f32],
    last: &mut [f32],
    count: usize,
    #[comptime] pass: Pass,
    #[define(E)] _type: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let sizes = comptime!(pass.sizes);
    let decayed = comptime!(sizes.decay != DecayKind::None);
    let part = part(sequences, pass);
    let mut state = Shared::<[f32]>::new_slice(comptime!(pass.state().len()));
    let mut rows = Shared::<[f32]>::new_slice(comptime!(pass.rows().len()));
    let mut tile = Shared::<[f32]>::new_slice(comptime!(KEYS.len()));
    start(&mut state, initial, &part, pass);

    for index in 0..part.chunks {
        let place = locate(chunks, part.first_chunk + index, part.head, sizes);
        let keys = place.rows(sizes.key_dim, sizes);
        let decays = place.decays(sizes);
        let values = place.rows(sizes.value_dim, sizes).from(0usize, part.column);
        sync_cube();
        save(&state, states, &state_view(place.state, sizes).from(0usize, part.column), pass);

        let mut sum = Array::<f32>::new(comptime!(pass.product().rows * pass.product().columns));
        add_read(&mut sum, &mut tile, w, &keys, to_end, &decays, &state, false, pass);
        put_rows(&mut rows, &sum, writes, &values, -1.0f32, pass);

        for block in 0..comptime!(pass.key_blocks()) {
            let key = block * CHUNK;
            let mut sum = Array::<f32>::new(comptime!(pass.product().rows * pass.product().columns));
            let (keys, decays) = (keys.from(0usize, key), decays.from(0usize, key));
            add_outer(&mut sum, &mut tile, k, &keys, to_end, &decays, &rows, decayed, pass);
            update(&mut state, &sum, from_start, &place, key, pass);
        }
    }
    sync_cube();
    let end = part.first_state + part.chunks * sizes.heads;
    save(&state, states, &state_view(end, sizes).from(0usize, part.column), pass);
    save(&state, last, &state_view(part.outer_state, sizes).from(0usize, part.column), pass);
}

/// Replaces `p^T do` by the gradient of what the steps write, and writes the gradients of the states
/// after every chunk and at the start.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn reverse_kernel<E: Float>(
    chunks: &[u32],
    sequences: &[u32],
    q: &[E],
    k: &[E],
    w: &[f32],
    from_start: &[f32],
    to_end: &[f32],
    output_gradient: &[E],
    last_gradient: &[f32],
    write_gradients: &mut [f32],
    state_gradients: &mut [f32],
    initial_gradient: &mut [f32],
    count: usize,
    factor: f32,
    #[comptime] pass: Pass,
    #[define(E)] _type: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let sizes = comptime!(pass.sizes);
    let decayed = comptime!(sizes.decay != DecayKind::None);
    let part = part(sequences, pass);
    let mut state = Shared::<[f32]>::new_slice(comptime!(pass.state().len()));
    let mut rows = Shared::<[f32]>::new_slice(comptime!(pass.rows().len()));
    let mut tile = Shared::<[f32]>::new_slice(comptime!(KEYS.len()));
    let mut some_rows = Shared::<[f32]>::new_slice(comptime!(pass.some_rows().len()));
    start(&mut state, last_gradient, &part, pass);

    for index in 0..part.chunks {
        let chunk = part.first_chunk + part.chunks - 1 - index;
        let place = locate(chunks, chunk, part.head, sizes);
        let keys = place.rows(sizes.key_dim, sizes);
        let decays = place.decays(sizes);
        let values = place.rows(sizes.value_dim, sizes).from(0usize, part.column);
        sync_cube();
        let after = state_view(place.state + sizes.heads, sizes);
        save(&state, state_gradients, &after.from(0usize, part.column), pass);

        let mut sum = Array::<f32>::new(comptime!(pass.product().rows * pass.product().columns));
        add_read(&mut sum, &mut tile, k, &keys, to_end, &decays, &state, decayed, pass);
        put_rows(&mut rows, &sum, write_gradients, &values, 1.0f32, pass);

        for block in 0..comptime!(pass.key_blocks()) {
            let key = block * CHUNK;
            let mut sum = Array::<f32>::new(comptime!(pass.product().rows * pass.product().columns));
            let (keys, decays) = (keys.from(0usize, key), decays.from(0usize, key));
            add_outer(&mut sum, &mut tile, w, &keys, from_start, &decays, &rows, false, pass);
            let mut read = Array::<f32>::new(comptime!(pass.product().rows * pass.product().columns));
            for slice in 0..comptime!(CHUNK / DEPTH) {
                let step = slice * DEPTH;
                sync_cube();
                fill(&mut tile, q, &keys.from(step, 0usize), STEPS);
                if decayed {
                    scale(&mut tile, from_start, &decays.from(step, 0usize), STEPS);
                }
                fill(&mut some_rows, output_gradient, &values.from(step, 0usize), comptime!(pass.some_rows()));
                sync_cube();
                multiply(&mut read, &tile, &some_rows, 0usize, comptime!(pass.product()));
            }
            #[unroll]
            for at in 0..comptime!(pass.product().rows * pass.product().columns) {
                sum[at] = factor * read[at] - sum[at];
            }
            update(&mut state, &sum, from_start, &place, key, pass);
        }
    }
    sync_cube();
    save(&state, state_gradients, &state_view(part.first_state, sizes).from(0usize, part.column), pass);
    save(&state, initial_gradient, &state_view(part.outer_state, sizes).from(0usize, part.column), pass);
}

/// The state that a pass starts from.
#[cube]
fn start(state: &mut Shared<[f32]>, initial: &[f32], part: &Part, #[comptime] pass: Pass) {
    let mut view = state_view(part.outer_state, pass.sizes).from(0usize, part.column);
    if comptime!(!pass.initial) {
        view.rows = 0usize.runtime();
    }
    fill(state, initial, &view, comptime!(pass.state()));
}
