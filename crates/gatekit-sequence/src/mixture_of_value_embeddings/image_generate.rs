//! Drawing pictures, with classifier-free guidance.

use burn::module::Module;
use burn::tensor::Tensor;
use gatekit_core::{ConfigError, InputError};

use super::image::{MoveImageModel, label_tensor};
use crate::generate::{GenerateConfig, GenerateError, Sampler};

/// `u + s (c - u)`: logits `c` of a class moved away from those without one, `u`, by the guidance
/// scale s. At 1 they are those of the class.
///
/// Ho and Salimans, "Classifier-Free Diffusion Guidance" (arXiv 2207.12598), eq. 6, with `s = 1 + w`.
///
/// # Panics
///
/// When the shapes differ.
pub fn guided(conditional: Tensor<2>, unconditional: Tensor<2>, scale: f64) -> Tensor<2> {
    assert!(
        conditional.dims() == unconditional.dims(),
        "guided: `unconditional` {:?} is not of the shape of `conditional` {:?}",
        unconditional.dims(),
        conditional.dims()
    );
    unconditional.clone() + (conditional - unconditional).mul_scalar(scale)
}

impl MoveImageModel {
    /// Draws a picture for every label: `config.max_new_tokens` codes each, row by row.
    ///
    /// With a `guidance` other than 1 a second picture without a class runs beside each, and codes
    /// are drawn from the [`guided`] logits. Temperature, truncations and seed are those of
    /// `config`; its `eos_token_id` and `prefill_size` mean nothing here. The model runs without
    /// autodiff, in memory that grows with the picture.
    ///
    /// # Errors
    ///
    /// [`GenerateError`] for an unusable configuration, more codes than the grid has, a guidance
    /// that is not finite, no label or one out of range, and logits that are not finite.
    pub fn generate(
        &self,
        labels: &[usize],
        guidance: f64,
        config: &GenerateConfig,
    ) -> Result<Vec<Vec<usize>>, GenerateError> {
        let (count, most) = (config.max_new_tokens, self.max_codes());
        let mut sampler = Sampler::new(config)?;
        if count == 0 || count > most {
            let need = format!("1 to {most}, the codes of the grid");
            return Err(ConfigError::new("max_new_tokens", count, need).into());
        }
        if !guidance.is_finite() {
            return Err(ConfigError::new("guidance", guidance, "a finite number").into());
        }
        if labels.is_empty() {
            return Err(InputError::new("labels", "none", "at least one label").into());
        }
        if let Some((place, label)) = labels.iter().enumerate().find(|(_, label)| **label > self.no_class()) {
            let got = format!("{label} at {place}");
            return Err(InputError::new("labels", got, format!("0 ..= {}", self.no_class())).into());
        }

        let model = self.valid();
        let device = model.devices().into_iter().next().unwrap_or_default();
        let guide = guidance != 1.0;
        let mut conditions = labels.to_vec();
        if guide {
            conditions.resize(2 * labels.len(), model.no_class());
        }
        let (mut logits, mut state) = model.begin(label_tensor(&conditions, &device));
        let mut pictures = vec![Vec::with_capacity(count); labels.len()];
        for index in 0..count {
            let scores = match guide {
                true => {
                    let half = |start| logits.clone().narrow(0, start, labels.len());
                    guided(half(0), half(labels.len()), guidance)
                }
                false => logits.clone(),
            };
            let scores: Vec<f32> = scores.into_data().iter::<f32>().collect();
            let mut codes = (scores.chunks(model.vocab_size()))
                .map(|scores| sampler.sample(scores))
                .collect::<Result<Vec<_>, _>>()?;
            for (picture, code) in pictures.iter_mut().zip(&codes) {
                picture.push(*code);
            }
            if index + 1 < count {
                if guide {
                    codes.extend_from_within(..);
                }
                (logits, state) = model.step(label_tensor(&codes, &device), state);
            }
        }
        Ok(pictures)
    }
}
