//! How sequences are cut into chunks, for the host and for the kernels.

use burn::backend::TensorMetadata;
use burn_cubecl::{
    cubecl::{self, calculate_cube_count_elemwise, prelude::*, server::Handle},
    tensor::CubeTensor,
};

use super::tiles::{UNITS, View};
use crate::scan::{DecayKind, ScanSpec};

/// Steps of a chunk.
pub(super) const CHUNK: usize = 64;
/// Elements of the matrix of a chunk's pairs of steps.
pub(super) const PAIRS: usize = CHUNK * CHUNK;

/// Sizes that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sizes {
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub decay: DecayKind,
}

impl Sizes {
    /// Log decays of a step and head.
    pub fn decays(self) -> usize {
        match self.decay {
            DecayKind::PerKey => self.key_dim,
            DecayKind::PerHead | DecayKind::None => 1,
        }
    }
}

/// The cut of all sequences.
pub(super) struct Layout {
    /// First token, steps and state before it, of every chunk.
    pub chunks: Vec<u32>,
    /// First chunk and number of chunks of every sequence.
    pub sequences: Vec<u32>,
    client: Client,
}

impl Layout {
    /// For queries `[batch, time, heads, key_dim]`.
    pub fn new(q: &CubeTensor, spec: &ScanSpec) -> Self {
        let shape = q.shape();
        let (batch, time) = (shape[0], shape[1]);
        let sequences: Vec<(usize, usize)> = match &spec.boundaries {
            Some(boundaries) => boundaries.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect(),
            None => (0..batch).map(|row| (row * time, time)).collect(),
        };
        let mut layout = Self { chunks: vec![], sequences: vec![], client: q.client.clone() };
        for (index, (first, steps)) in sequences.into_iter().enumerate() {
            let chunk = layout.chunk_count();
            layout.sequences.extend([chunk as u32, steps.div_ceil(CHUNK) as u32]);
            for start in (0..steps).step_by(CHUNK) {
                // A sequence has a state before each of its chunks and one after the last.
                let state = layout.chunk_count() + index;
                let steps = CHUNK.min(steps - start);
                layout.chunks.extend([(first + start) as u32, steps as u32, state as u32]);
            }
        }
        layout
    }

    pub fn chunk_count(&self) -> usize {
        self.chunks.len() / 3
    }

    pub fn sequence_count(&self) -> usize {
        self.sequences.len() / 2
    }

    /// States before chunks and at the ends.
    pub fn state_count(&self) -> usize {
        self.chunk_count() + self.sequence_count()
    }

    /// A table on the device.
    pub fn upload(&self, table: &[u32]) -> Handle {
        self.client.create_from_slice(u32::as_bytes(table))
    }
}

/// An uploaded table as an argument.
pub(super) fn table(handle: &Handle, length: usize) -> BufferArg {
    // SAFETY: the handle was made from that many integers.
    unsafe { BufferArg::from_raw_parts(handle.clone(), length) }
}

/// The grid of at least `cubes` cubes.
pub(super) fn cubes(client: &Client, cubes: usize) -> (CubeCount, CubeDim) {
    let units = CubeDim::new_1d(UNITS as u32);
    (calculate_cube_count_elemwise(client, cubes * UNITS, units), units)
}

/// A chunk of a head.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    /// First token.
    pub token: usize,
    pub steps: usize,
    /// The state before the chunk, counted over heads too.
    pub state: usize,
    /// The chunk itself, counted over heads too.
    pub chunk: usize,
    pub head: usize,
}

/// Chunk `chunk` of head `head`.
#[cube]
pub(super) fn locate(chunks: &[u32], chunk: usize, head: usize, #[comptime] sizes: Sizes) -> Place {
    Place {
        token: chunks[chunk * 3] as usize,
        steps: chunks[chunk * 3 + 1] as usize,
        state: chunks[chunk * 3 + 2] as usize * sizes.heads + head,
        chunk: chunk * sizes.heads + head,
        head,
    }
}

#[cube]
impl Place {
    /// The chunk's rows of a tensor `[.., heads, width]` over tokens.
    pub fn rows(&self, width: usize, #[comptime] sizes: Sizes) -> View {
        View {
            origin: (self.token * sizes.heads + self.head) * width,
            row: width * sizes.heads,
            column: 1usize.runtime(),
            rows: self.steps,
            columns: width,
        }
    }

    /// One value a token, for all of `columns`.
    pub fn values(&self, columns: usize, #[comptime] sizes: Sizes) -> View {
        View {
            origin: self.token * sizes.heads + self.head,
            row: 1usize.runtime() * sizes.heads,
            column: 0usize.runtime(),
            rows: self.steps,
            columns,
        }
    }

    /// The log decays, or factors made of them, as a matrix over tokens and keys.
    pub fn decays(&self, #[comptime] sizes: Sizes) -> View {
        if comptime!(sizes.decay == DecayKind::PerKey) {
            self.rows(sizes.key_dim, sizes)
        } else {
            self.values(sizes.key_dim, sizes)
        }
    }

    /// A matrix over the pairs of the chunk's steps.
    pub fn pairs(&self) -> View {
        View {
            origin: self.chunk * PAIRS,
            row: 1usize.runtime() * CHUNK,
            column: 1usize.runtime(),
            rows: 1usize.runtime() * CHUNK,
            columns: 1usize.runtime() * CHUNK,
        }
    }
}

/// A state `[key_dim, value_dim]`.
#[cube]
pub(super) fn state_view(state: usize, #[comptime] sizes: Sizes) -> View {
    View {
        origin: state * comptime!(sizes.key_dim * sizes.value_dim),
        row: 1usize.runtime() * sizes.value_dim,
        column: 1usize.runtime(),
        rows: 1usize.runtime() * sizes.key_dim,
        columns: 1usize.runtime() * sizes.value_dim,
    }
}
