//! `(I + diag(beta) E)^-1` for the strictly lower `E`, by forward substitution.

use cubecl::{ir::ElemType, prelude::*};

use super::super::decay::CHUNK;
use super::place::{Sizes, place_of_cube};

/// Terms added up apart, so that one addition need not wait for the other.
const SUMS: usize = 4;

/// A unit a column of the inverse, `CHUNK` units a cube.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn solve_kernel<B: Float>(
    keys_on_keys: &[f32],
    beta: &[B],
    chunks: &[u32],
    inverse: &mut [f32],
    count: usize,
    sizes: &Sizes,
    #[define(B)] _strength: ElemType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let column = UNIT_POS as usize;
    let place = place_of_cube(chunks, sizes, 1usize.runtime());
    let origin = place.pairs().origin;
    let strengths = place.numbers(sizes, 1usize.runtime());

    // Every unit reads and writes its own column alone.
    let mut solved = Shared::<[f32]>::new_slice(comptime!(CHUNK * CHUNK));
    for row in 0..CHUNK {
        solved[row * CHUNK + column] = select(row == column, 1.0f32, 0.0f32);
    }
    for row in 0..CHUNK {
        let mut value = solved[row * CHUNK + column];
        let strength = strengths.read(beta, row, 0usize);
        if row < place.steps {
            let mut sums = Array::<f32>::new(SUMS);
            // Rounded up: E is zero at and above the diagonal.
            for part in 0..row.div_ceil(SUMS) {
                #[unroll]
                for index in 0..SUMS {
                    let at = part * SUMS + index;
                    sums[index] += keys_on_keys[origin + row * CHUNK + at] * solved[at * CHUNK + column];
                }
            }
            let mut sum = 0.0f32.runtime();
            #[unroll]
            for index in 0..SUMS {
                sum += sums[index];
            }
            value -= strength * sum;
        }
        solved[row * CHUNK + column] = value;
        inverse[origin + row * CHUNK + column] = value;
    }
}
