//! What the tokens are.

use std::sync::Arc;

use burn::tensor::{Bool, Int, Tensor};
use gatekit_core::InputError;
use serde::{Deserialize, Serialize};

/// What a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// A piece of text, generated ones included; code 0.
    Text,
    /// A patch of an image or a frame; code 1.
    Vision,
    /// A special token of the chat template, whose experts are never skipped; code 2.
    Other,
}

impl Modality {
    /// All, by code.
    pub const ALL: [Self; 3] = [Self::Text, Self::Vision, Self::Other];
    /// Those whose experts can be skipped: the columns of [`LayerImportance`](super::LayerImportance).
    pub const SKIPPABLE: [Self; 2] = [Self::Text, Self::Vision];

    /// 0 for text, 1 for vision, 2 for other.
    pub fn code(self) -> usize {
        self as usize
    }

    /// Of a code.
    ///
    /// # Errors
    ///
    /// [`InputError`] outside 0..2.
    pub fn from_code(code: i64) -> Result<Self, InputError> {
        let known = usize::try_from(code).ok().and_then(|code| Self::ALL.get(code).copied());
        known.ok_or_else(|| InputError::new("modality", code, "0 (text), 1 (vision) or 2 (other)"))
    }
}

/// The modality of every token of a pass, and which tokens are padding; one value serves all
/// layers of a model. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenModalities {
    modalities: Arc<[Modality]>,
    real: Option<Arc<[bool]>>,
}

impl TokenModalities {
    /// One modality a token, row by row of the batch; no padding.
    pub fn new(modalities: Vec<Modality>) -> Self {
        Self { modalities: modalities.into(), real: None }
    }

    /// Text throughout, as in decoding.
    pub fn text(tokens: usize) -> Self {
        Self::new(vec![Modality::Text; tokens])
    }

    /// From codes.
    ///
    /// # Errors
    ///
    /// [`InputError`] for a code outside 0..2, with its place.
    pub fn from_codes(codes: &[i64]) -> Result<Self, InputError> {
        let modalities = codes.iter().enumerate().map(|(token, &code)| {
            Modality::from_code(code)
                .map_err(|error| InputError::new(error.field, format!("{code} at token {token}"), error.need))
        });
        Ok(Self::new(modalities.collect::<Result<_, _>>()?))
    }

    /// From a tensor of codes, `[N]` or `[batch, time]`.
    ///
    /// # Errors
    ///
    /// As [`from_codes`](Self::from_codes).
    pub fn from_tensor<const D: usize>(codes: &Tensor<D, Int>) -> Result<Self, InputError> {
        Self::from_codes(&codes.to_data().iter::<i64>().collect::<Vec<_>>())
    }

    /// With padding: `real` is false for tokens that are none. They are not counted.
    ///
    /// # Errors
    ///
    /// [`InputError`] unless there is one entry a token.
    pub fn with_mask(self, real: Vec<bool>) -> Result<Self, InputError> {
        if real.len() != self.len() {
            let got = format!("{} entries", real.len());
            return Err(InputError::new("mask", got, format!("one a token: {}", self.len())));
        }
        Ok(Self { real: Some(real.into()), ..self })
    }

    /// As [`with_mask`](Self::with_mask), from a tensor `[N]` or `[batch, time]`.
    ///
    /// # Errors
    ///
    /// As [`with_mask`](Self::with_mask).
    pub fn with_mask_tensor<const D: usize>(self, real: &Tensor<D, Bool>) -> Result<Self, InputError> {
        self.with_mask(real.to_data().iter::<bool>().collect())
    }

    /// Number of tokens, padding included.
    pub fn len(&self) -> usize {
        self.modalities.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.modalities.is_empty()
    }

    /// The modality of every token.
    pub fn modalities(&self) -> &[Modality] {
        &self.modalities
    }

    /// Whether a token is none.
    pub fn is_padding(&self, token: usize) -> bool {
        self.real.as_ref().is_some_and(|real| !real[token])
    }
}
