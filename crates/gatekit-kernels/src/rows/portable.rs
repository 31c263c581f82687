//! Rows put together in backend operations.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use super::RowMap;
use crate::primitive::{Primitive, accumulation};

/// The rows of all members, a target's beside one another and short ones filled up with a row of zeros, then their sum.
pub(super) fn combine<B: Backend>(x: FloatTensor<B>, map: &RowMap) -> FloatTensor<B> {
    let dtype = x.dtype();
    let x = Primitive::<B>(x);
    if map.is_picking() {
        return x.select(0, map.members().to_vec()).0;
    }
    let (width, targets, sources) = (x.dims()[1], map.targets(), map.sources());
    let most = (0..targets).map(|target| map.range(target).len()).max().unwrap_or(0);
    let zero = x.zeros([1, width]);
    let picked = (0..targets).flat_map(|target| {
        let members = map.of_target(target).iter().copied();
        members.chain(std::iter::repeat(sources)).take(most)
    });
    let rows = Primitive::cat(vec![x, zero], 0).select(0, picked.collect()).cast(accumulation(dtype));
    rows.reshape([targets, most, width]).sum(1).reshape([targets, width]).cast(dtype).0
}
