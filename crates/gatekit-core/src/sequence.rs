//! Where sequences begin and end: packed batches and padding masks.

use std::sync::Arc;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::error::InputError;

/// Boundaries of sequences packed one after the other along time (`cu_seqlens`).
///
/// `[0, n_1, n_1 + n_2, ..., T]`: segment `i` holds the steps `cu[i] .. cu[i + 1]`. A packed
/// tensor has batch size 1. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundaries(Arc<[usize]>);

impl Boundaries {
    /// Checks the cumulative lengths of sequences packed along `time` steps.
    ///
    /// # Errors
    ///
    /// [`InputError`] when they do not start at 0, do not end at `time`, or do not strictly
    /// increase (an empty segment has no final state).
    pub fn new(cu_seqlens: &[usize], time: usize) -> Result<Self, InputError> {
        let refuse = |need: String| Err(InputError::new("cu_seqlens", format!("{cu_seqlens:?}"), need));
        match cu_seqlens {
            [] | [_] => refuse("at least one segment: [0, .., T]".into()),
            [first, ..] if *first != 0 => refuse("a first entry of 0".into()),
            [.., last] if *last != time => {
                refuse(format!("a last entry of {time}, the number of time steps"))
            }
            entries if entries.windows(2).any(|pair| pair[0] >= pair[1]) => {
                refuse("strictly increasing entries (no empty segment)".into())
            }
            entries => Ok(Self(entries.into())),
        }
    }

    /// Reads cumulative lengths from a tensor `[N + 1]`; otherwise as [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and for negative entries.
    pub fn from_tensor(cu_seqlens: &Tensor<1, Int>, time: usize) -> Result<Self, InputError> {
        let entries: Vec<i64> = cu_seqlens.to_data().iter::<i64>().collect();
        let cu_seqlens: Option<Vec<usize>> =
            entries.iter().map(|&entry| usize::try_from(entry).ok()).collect();
        match cu_seqlens {
            Some(cu_seqlens) => Self::new(&cu_seqlens, time),
            None => Err(InputError::new("cu_seqlens", format!("{entries:?}"), "no negative entry")),
        }
    }

    /// The cumulative lengths `[0, .., T]`.
    pub fn cu_seqlens(&self) -> &[usize] {
        &self.0
    }

    /// The cumulative lengths, shared.
    pub fn shared(&self) -> Arc<[usize]> {
        self.0.clone()
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.0.len() - 1
    }

    /// Number of time steps of all segments together.
    pub fn time(&self) -> usize {
        self.0[self.0.len() - 1]
    }

    /// For every step its index within its segment, counted from 0.
    pub fn position_in_segment(&self) -> Vec<usize> {
        self.0.windows(2).flat_map(|pair| 0..pair[1] - pair[0]).collect()
    }
}

/// Removes the padded tokens of a batch: the real tokens of all rows become one packed sequence.
///
/// Made from a mask `[batch, time]` with `true` for real tokens. Padding may stand anywhere in a
/// row. A layer that runs on [`pack`](Self::pack)ed features cannot be influenced by padding.
#[derive(Debug, Clone)]
pub struct Packing {
    boundaries: Boundaries,
    batch: usize,
    time: usize,
    /// Row of the flattened batch that holds the i-th real token, `[N]`.
    gather: Tensor<1, Int>,
    /// For every row of the flattened batch its place among the real tokens, `N` for padding.
    scatter: Tensor<1, Int>,
}

impl Packing {
    /// Reads a padding mask `[batch, time]` (`true` = real token).
    ///
    /// # Errors
    ///
    /// [`InputError`] when a row has no real token.
    pub fn from_mask(mask: &Tensor<2, Bool>) -> Result<Self, InputError> {
        Self::read(mask, false)
    }

    /// As [`from_mask`](Self::from_mask), but a row may be without a real token: it is no segment, and 0
    /// after [`unpack`](Self::unpack). Segment `i` is then the i-th row that has a token.
    ///
    /// # Errors
    ///
    /// [`InputError`] when the whole batch has no real token.
    pub fn from_mask_with_empty_rows(mask: &Tensor<2, Bool>) -> Result<Self, InputError> {
        Self::read(mask, true)
    }

    fn read(mask: &Tensor<2, Bool>, empty_rows: bool) -> Result<Self, InputError> {
        let [batch, time] = mask.dims();
        let real: Vec<bool> = mask.to_data().iter::<bool>().collect();
        let count = real.iter().filter(|real| **real).count();
        let mut cu_seqlens = vec![0];
        let mut gather = Vec::with_capacity(count);
        let mut scatter = Vec::with_capacity(batch * time);
        for row in 0..batch {
            for column in 0..time {
                let index = row * time + column;
                if real[index] {
                    scatter.push(gather.len() as i64);
                    gather.push(index as i64);
                } else {
                    scatter.push(count as i64);
                }
            }
            let empty = cu_seqlens.last() == Some(&gather.len());
            if empty && empty_rows {
                continue;
            }
            if empty {
                return Err(InputError::new(
                    "attention_mask",
                    format!("row {row} without a real token"),
                    "at least one real token (true) in every row",
                ));
            }
            cu_seqlens.push(gather.len());
        }
        if count == 0 {
            return Err(InputError::new("attention_mask", "no real token", "at least one real token (true)"));
        }
        let device = mask.device();
        Ok(Self {
            boundaries: Boundaries::new(&cu_seqlens, count)?,
            batch,
            time,
            gather: indices(gather, &device),
            scatter: indices(scatter, &device),
        })
    }

    /// Boundaries of the packed rows: segment `i` is row `i` of the batch.
    pub fn boundaries(&self) -> &Boundaries {
        &self.boundaries
    }

    /// `[batch, time, dim]` to `[1, N, dim]`: the real tokens alone.
    ///
    /// # Panics
    ///
    /// When `x` does not have the batch and time of the mask.
    pub fn pack(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, time, dim] = x.dims();
        assert!(
            [batch, time] == [self.batch, self.time],
            "pack: `x` has [batch, time] = [{batch}, {time}], the mask [{}, {}]",
            self.batch,
            self.time
        );
        x.reshape([batch * time, dim]).select(0, self.gather.clone()).unsqueeze_dim(0)
    }

    /// `[batch, time]` to `[1, N]`: the ids of the real tokens alone.
    ///
    /// # Panics
    ///
    /// When `ids` do not have the batch and time of the mask.
    pub fn pack_ids(&self, ids: Tensor<2, Int>) -> Tensor<2, Int> {
        let [batch, time] = ids.dims();
        assert!(
            [batch, time] == [self.batch, self.time],
            "pack_ids: `ids` has [batch, time] = [{batch}, {time}], the mask [{}, {}]",
            self.batch,
            self.time
        );
        ids.reshape([batch * time]).select(0, self.gather.clone()).unsqueeze_dim(0)
    }

    /// `[1, N, dim]` to `[batch, time, dim]`, 0 at padded positions.
    ///
    /// # Panics
    ///
    /// When `x` does not hold the mask's number of real tokens.
    pub fn unpack(&self, x: Tensor<3>) -> Tensor<3> {
        let [rows, count, dim] = x.dims();
        assert!(
            [rows, count] == [1, self.boundaries.time()],
            "unpack: `x` has [1, N] = [{rows}, {count}], the mask [1, {}]",
            self.boundaries.time()
        );
        let padding = Tensor::zeros([1, dim], (&x.device(), x.dtype()));
        Tensor::cat(vec![x.reshape([count, dim]), padding], 0)
            .select(0, self.scatter.clone())
            .reshape([self.batch, self.time, dim])
    }
}

fn indices(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_checked() {
        assert!(Boundaries::new(&[0, 3, 7], 7).is_ok());
        for bad in [&[][..], &[0], &[1, 7], &[0, 6], &[0, 3, 3, 7], &[0, 5, 3, 7], &[0, 9, 7]] {
            let error = Boundaries::new(bad, 7).unwrap_err();
            assert_eq!(error.field, "cu_seqlens", "{bad:?}");
        }
        let positions = Boundaries::new(&[0, 3, 4, 6], 6).unwrap().position_in_segment();
        assert_eq!(positions, [0, 1, 2, 0, 0, 1]);
    }

    #[cfg(feature = "flex")]
    #[test]
    fn packing_removes_and_restores() {
        let device = Device::flex();
        let mask = Tensor::<2, Bool>::from_data([[false, true, true], [true, false, true]], &device);
        let packing = Packing::from_mask(&mask).unwrap();
        assert_eq!(packing.boundaries().cu_seqlens(), [0, 2, 4]);
        let x = Tensor::<3>::from_data([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]], &device);
        let packed = packing.pack(x);
        assert_eq!(packed.to_data().try_to_vec::<f32>().unwrap(), [2.0, 3.0, 4.0, 6.0]);
        let ids = Tensor::<2, Int>::from_data([[1, 2, 3], [4, 5, 6]], &device);
        assert_eq!(packing.pack_ids(ids).to_data().iter::<i64>().collect::<Vec<_>>(), [2, 3, 4, 6]);
        let restored = packing.unpack(packed).to_data().try_to_vec::<f32>().unwrap();
        assert_eq!(restored, [0.0, 2.0, 3.0, 4.0, 0.0, 6.0]);

        let empty = Tensor::<2, Bool>::from_data([[false, false]], &device);
        assert!(Packing::from_mask(&empty).is_err());
        assert!(Packing::from_mask_with_empty_rows(&empty).is_err());
        let mask = Tensor::<2, Bool>::from_data([[false, false], [true, false], [false, false]], &device);
        assert!(Packing::from_mask(&mask).is_err());
        let packing = Packing::from_mask_with_empty_rows(&mask).unwrap();
        assert_eq!(packing.boundaries().cu_seqlens(), [0, 1]);
        let x = Tensor::<3>::from_data([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]], &device);
        let restored = packing.unpack(packing.pack(x)).to_data().try_to_vec::<f32>().unwrap();
        assert_eq!(restored, [0.0, 0.0, 3.0, 0.0, 0.0, 0.0]);
    }
}
