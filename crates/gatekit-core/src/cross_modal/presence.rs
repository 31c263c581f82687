//! Which modalities of a batch are there, and which of their steps.

use burn::tensor::{Bool, Device, Tensor, TensorData};
use thiserror::Error;

/// Masks that describe no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ModalityMaskError {
    /// Nothing to compute from.
    #[error("instance {instance} has no modality at all, need at least one that is present")]
    NoModality {
        /// Index into the batch.
        instance: usize,
    },
    /// A modality that is said to be there without a single step.
    #[error("instance {instance}: modality {modality} is present without a valid step")]
    NoStep {
        /// Index into the batch.
        instance: usize,
        /// Index of the modality.
        modality: usize,
    },
    /// Padding before a step that counts.
    #[error(
        "instance {instance}, modality {modality}: step {step} is padding, but a later one counts; need padding at \
         the end alone"
    )]
    Hole {
        /// Index into the batch.
        instance: usize,
        /// Index of the modality.
        modality: usize,
        /// The first step of padding.
        step: usize,
    },
}

/// Presence `[B, M]` and padding `[B, T_m]` of M modalities, kept apart and checked.
///
/// A modality can be absent in one instance and there in another; where it is there, its sequence has at least one
/// step and may be padded at the end. An absent modality has no valid step, whatever its padding mask said.
#[derive(Debug, Clone)]
pub struct ModalityMask {
    present: Tensor<2, Bool>,
    steps: Vec<Tensor<2, Bool>>,
    /// `[M][B]`, 0 for an absent modality.
    lengths: Vec<Vec<usize>>,
}

impl ModalityMask {
    /// From `present` `[B, M]`, true for a modality that is there, and `steps`, M masks `[B, T_m]`, true for a real step.
    ///
    /// # Errors
    ///
    /// [`ModalityMaskError`] names the instance that has no modality at all, and the modality that is present without
    /// a valid step or has padding before a real step. Masks of absent modalities are not looked at.
    ///
    /// # Panics
    ///
    /// When there is not one mask a column of `present`, or a mask is of another batch.
    pub fn new(present: Tensor<2, Bool>, steps: Vec<Tensor<2, Bool>>) -> Result<Self, ModalityMaskError> {
        let [batch, modalities] = present.dims();
        assert!(
            steps.len() == modalities,
            "ModalityMask: {} masks in `steps`, but `present` {:?} has {modalities} modalities",
            steps.len(),
            present.dims()
        );
        let there: Vec<bool> = present.to_data().iter::<bool>().collect();
        let here = |instance: usize, modality: usize| there[instance * modalities + modality];
        if let Some(instance) = (0..batch).find(|&instance| !(0..modalities).any(|m| here(instance, m))) {
            return Err(ModalityMaskError::NoModality { instance });
        }
        let mut lengths = Vec::with_capacity(modalities);
        for (modality, mask) in steps.iter().enumerate() {
            let [rows, count] = mask.dims();
            assert!(
                rows == batch,
                "ModalityMask: `steps[{modality}]` {:?} and `present` {:?} differ in batch",
                mask.dims(),
                present.dims()
            );
            let valid: Vec<bool> = mask.to_data().iter::<bool>().collect();
            let length = |instance: usize| {
                if !here(instance, modality) {
                    return Ok(0);
                }
                let row = &valid[instance * count..(instance + 1) * count];
                let length = row.iter().take_while(|valid| **valid).count();
                if row[length..].contains(&true) {
                    return Err(ModalityMaskError::Hole { instance, modality, step: length });
                }
                if length == 0 {
                    return Err(ModalityMaskError::NoStep { instance, modality });
                }
                Ok(length)
            };
            lengths.push((0..batch).map(length).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Self::from_parts(present, steps, lengths))
    }

    /// All modalities in all of `batch` instances, of `steps` steps each.
    ///
    /// # Panics
    ///
    /// When there is no modality, or one without a step.
    pub fn full(batch: usize, steps: &[usize], device: &Device) -> Self {
        assert!(
            !steps.is_empty() && !steps.contains(&0),
            "ModalityMask: `steps` {steps:?}, need at least one modality and one step of each"
        );
        let all = |width| Tensor::<2, Bool>::full([batch, width], true, device);
        let lengths = steps.iter().map(|&count| vec![count; batch]).collect();
        Self::from_parts(all(steps.len()), steps.iter().map(|&count| all(count)).collect(), lengths)
    }

    /// Takes modalities away: `removed` `[B][M]`, true for what shall be absent; what is absent already may be named.
    ///
    /// # Errors
    ///
    /// [`ModalityMaskError::NoModality`] when an instance would keep none.
    ///
    /// # Panics
    ///
    /// When `removed` is not `[B][M]`.
    pub fn without(&self, removed: &[Vec<bool>]) -> Result<Self, ModalityMaskError> {
        let [batch, modalities] = self.present.dims();
        assert!(
            removed.len() == batch && removed.iter().all(|row| row.len() == modalities),
            "ModalityMask: `removed` has {} rows, need [{batch}][{modalities}]",
            removed.len()
        );
        let mut lengths = self.lengths.clone();
        for (instance, row) in removed.iter().enumerate() {
            for (modality, _) in row.iter().enumerate().filter(|(_, removed)| **removed) {
                lengths[modality][instance] = 0;
            }
            if lengths.iter().all(|of| of[instance] == 0) {
                return Err(ModalityMaskError::NoModality { instance });
            }
        }
        let there = (0..batch).flat_map(|instance| lengths.iter().map(move |of| of[instance] > 0));
        let there = TensorData::new(there.collect::<Vec<_>>(), [batch, modalities]);
        let present = Tensor::from_data(there, &self.present.device());
        Ok(Self::from_parts(present, self.steps.clone(), lengths))
    }

    fn from_parts(present: Tensor<2, Bool>, steps: Vec<Tensor<2, Bool>>, lengths: Vec<Vec<usize>>) -> Self {
        let steps = (steps.into_iter().enumerate())
            .map(|(modality, mask)| {
                let dims = mask.dims();
                mask.bool_and(present.clone().narrow(1, modality, 1).expand(dims))
            })
            .collect();
        Self { present, steps, lengths }
    }

    /// Presence, `[B, M]`.
    pub fn present(&self) -> Tensor<2, Bool> {
        self.present.clone()
    }

    /// Valid steps of a modality, `[B, T_m]`; all false where it is absent.
    ///
    /// # Panics
    ///
    /// When there is no such modality.
    pub fn steps(&self, modality: usize) -> &Tensor<2, Bool> {
        &self.steps[modality]
    }

    /// How many steps of a modality are valid in every instance, `[B]`; 0 where it is absent.
    ///
    /// # Panics
    ///
    /// When there is no such modality.
    pub fn lengths(&self, modality: usize) -> &[usize] {
        &self.lengths[modality]
    }

    /// Instances B.
    pub fn batch(&self) -> usize {
        self.present.dims()[0]
    }

    /// Modalities M.
    pub fn num_modalities(&self) -> usize {
        self.steps.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::devices;

    fn mask(rows: &[&[bool]], device: &Device) -> Tensor<2, Bool> {
        let shape = [rows.len(), rows[0].len()];
        Tensor::from_data(TensorData::new(rows.concat(), shape), device)
    }

    fn read(mask: Tensor<2, Bool>) -> Vec<bool> {
        mask.into_data().iter::<bool>().collect()
    }

    #[test]
    fn an_absent_modality_has_no_step_whatever_its_mask_says() {
        for device in devices() {
            let present = mask(&[&[true, false], &[true, true]], &device);
            let a = mask(&[&[true, true, false], &[true, false, false]], &device);
            // With a hole in the first row, where the modality is absent.
            let b = mask(&[&[false, true], &[true, true]], &device);
            let masks = ModalityMask::new(present, vec![a, b]).unwrap();
            assert_eq!((masks.batch(), masks.num_modalities()), (2, 2));
            assert_eq!((masks.lengths(0), masks.lengths(1)), (&[2, 1][..], &[0, 2][..]));
            assert_eq!(read(masks.steps(1).clone()), [false, false, true, true]);
            let fewer = masks.without(&[vec![false, true], vec![true, false]]).unwrap();
            assert_eq!(read(fewer.present()), [true, false, false, true]);
            assert_eq!(read(fewer.steps(0).clone()), [true, true, false, false, false, false]);
            assert_eq!(fewer.lengths(0), [2, 0]);
            let none = masks.without(&[vec![true, false], vec![false, false]]);
            assert_eq!(none.unwrap_err(), ModalityMaskError::NoModality { instance: 0 });
        }
    }

    #[test]
    fn full_masks_hide_nothing() {
        for device in devices() {
            let masks = ModalityMask::full(2, &[1, 3], &device);
            assert_eq!(read(masks.present()), [true; 4]);
            assert_eq!(read(masks.steps(1).clone()), [true; 6]);
            assert_eq!(masks.lengths(1), [3, 3]);
        }
    }

    #[test]
    fn masks_of_no_batch_are_refused() {
        let device = devices().remove(0);
        let steps = |rows: &[&[bool]]| mask(rows, &device);
        let refused = |present: &[&[bool]], b: &[&[bool]]| {
            let a = steps(&[&[true, true], &[true, false]]);
            ModalityMask::new(steps(present), vec![a, steps(b)]).unwrap_err()
        };
        let both: [&[bool]; 2] = [&[true; 2]; 2];
        let full: [&[bool]; 2] = [&[true; 3]; 2];
        let error = refused(&[&[true, true], &[false, false]], &full);
        assert_eq!(error, ModalityMaskError::NoModality { instance: 1 });
        assert!(error.to_string().contains("instance 1"));
        let error = refused(&both, &[&[true; 3], &[false; 3]]);
        assert_eq!(error, ModalityMaskError::NoStep { instance: 1, modality: 1 });
        let error = refused(&both, &[&[true, false, true], &[true; 3]]);
        assert_eq!(error, ModalityMaskError::Hole { instance: 0, modality: 1, step: 1 });
        let error = refused(&both, &[&[true; 3], &[false, true, true]]);
        assert_eq!(error, ModalityMaskError::Hole { instance: 1, modality: 1, step: 0 });
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let device = devices().remove(0);
        let text = |steps: Vec<Tensor<2, Bool>>| {
            let present = mask(&[&[true, true]], &device);
            let panic =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ModalityMask::new(present, steps)));
            *panic.unwrap_err().downcast::<String>().unwrap()
        };
        let one = mask(&[&[true]], &device);
        assert!(text(vec![one.clone()]).contains("1 masks in `steps`"));
        let two = text(vec![one, mask(&[&[true], &[true]], &device)]);
        assert!(two.contains("`steps[1]` [2, 1]") && two.contains("`present` [1, 2]"), "{two}");
    }
}
