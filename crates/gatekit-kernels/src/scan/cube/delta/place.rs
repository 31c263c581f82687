//! Where the parts of a chunk lie in the tensors.

use cubecl::prelude::*;

use super::super::{blocks::Planes, decay::CHUNK};
use super::tiles::View;
use crate::scan::DecayKind;

/// Elements of the matrix of a chunk's pairs of steps.
pub(super) const PAIRS: usize = CHUNK * CHUNK;

/// Sizes of a scan, and what its kernels are compiled for.
#[derive(CubeType, CubeLaunch, Clone)]
pub(super) struct Sizes {
    pub heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// What decays.
    #[cube(comptime)]
    pub decay: DecayKind,
    /// Planes that work with matrix units, see [`Grid`](super::super::blocks::Grid).
    #[cube(comptime)]
    pub planes: Option<Planes>,
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

/// The chunk and head of a cube, with `blocks` cubes each.
#[cube]
pub(super) fn place_of_cube(chunks: &[u32], sizes: &Sizes, blocks: usize) -> Place {
    let index = CUBE_POS / blocks;
    place(chunks, sizes, index / sizes.heads, index % sizes.heads)
}

/// Chunk `chunk` of head `head`. `chunks`: three numbers each: first token, length, slot of the state before it.
#[cube]
pub(super) fn place(chunks: &[u32], sizes: &Sizes, chunk: usize, head: usize) -> Place {
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
    /// The chunk's rows of a tensor `[tokens, heads, width]`.
    pub fn rows(&self, sizes: &Sizes, width: usize) -> View {
        View {
            origin: (self.token * sizes.heads + self.head) * width,
            row: width * sizes.heads,
            column: 1usize.runtime(),
            rows: self.steps,
            columns: width,
        }
    }

    /// The chunk's rows of keys.
    pub fn keys(&self, sizes: &Sizes) -> View {
        self.rows(sizes, sizes.key_dim)
    }

    /// The chunk's rows of values.
    pub fn values(&self, sizes: &Sizes) -> View {
        self.rows(sizes, sizes.value_dim)
    }

    /// One number a token, the same for all of `columns`.
    pub fn numbers(&self, sizes: &Sizes, columns: usize) -> View {
        View {
            origin: self.token * sizes.heads + self.head,
            row: sizes.heads,
            column: 0usize.runtime(),
            rows: self.steps,
            columns,
        }
    }

    /// The log decays, or factors made of them, over tokens and keys.
    pub fn decays(&self, sizes: &Sizes) -> View {
        if comptime!(sizes.decay == DecayKind::PerKey) {
            self.keys(sizes)
        } else {
            self.numbers(sizes, sizes.key_dim)
        }
    }

    /// A matrix over the pairs of the chunk's steps.
    pub fn pairs(&self) -> View {
        View {
            origin: self.chunk * PAIRS,
            row: CHUNK.runtime(),
            column: 1usize.runtime(),
            rows: CHUNK.runtime(),
            columns: CHUNK.runtime(),
        }
    }
}

/// State `state` of `[.., key_dim, value_dim]`.
#[cube]
pub(super) fn state_view(sizes: &Sizes, state: usize) -> View {
    View {
        origin: state * sizes.key_dim * sizes.value_dim,
        row: sizes.value_dim,
        column: 1usize.runtime(),
        rows: sizes.key_dim,
        columns: sizes.value_dim,
    }
}
