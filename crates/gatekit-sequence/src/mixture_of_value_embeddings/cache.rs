//! Streaming states: what the layers remember of the tokens so far.

use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::attention::KvCache;
use gatekit_core::checkpoint::{NamedTensors, TensorError, TensorProblem};

use crate::backbone::{
    MixerState, check_shape, no_more_tensors, state_data, take_state_tensor, tensor_bytes,
};

/// Latents and shared keys of the tokens so far: the state of
/// [`MoveLatentAttention`](super::MoveLatentAttention).
#[derive(Debug, Clone)]
pub struct MoveLatentCache {
    /// Mixed latents, `[batch, tokens, d_c]`.
    pub mixed: Tensor<3>,
    /// Plain latents, `[batch, tokens, d_c]`, where the keys are made of them.
    pub plain: Option<Tensor<3>>,
    /// Shared keys after the rotation, `[batch, tokens, d_rope]`.
    pub rotated: Tensor<3>,
    /// Number of tokens seen, so also the position of the next one.
    pub position: usize,
}

impl MoveLatentCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.mixed.dims()[1]
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Old and new tokens one after the other.
    pub(super) fn extended(self, new: Self) -> Self {
        let position = self.position + new.len();
        if self.is_empty() {
            return Self { position, ..new };
        }
        let join = |old: Tensor<3>, new: Tensor<3>| Tensor::cat(vec![old, new], 1);
        Self {
            mixed: join(self.mixed, new.mixed),
            plain: self.plain.zip(new.plain).map(|(old, new)| join(old, new)),
            rotated: join(self.rotated, new.rotated),
            position,
        }
    }

    /// Only the last `count` tokens, at least 1.
    pub(super) fn last(self, count: usize) -> Self {
        let held = self.len();
        if held <= count {
            return self;
        }
        let cut = |tensor: Tensor<3>| tensor.narrow(1, held - count, count);
        Self {
            mixed: cut(self.mixed),
            plain: self.plain.map(cut),
            rotated: cut(self.rotated),
            position: self.position,
        }
    }

    fn check(&self, empty: &Self, batch: usize) -> Result<(), InputError> {
        let held = self.len();
        let need = |like: &Tensor<3>| [batch, held, like.dims()[2]];
        check_shape("mixed", &self.mixed.dims(), &need(&empty.mixed))?;
        check_shape("rotated", &self.rotated.dims(), &need(&empty.rotated))?;
        match (&self.plain, &empty.plain) {
            (None, None) => Ok(()),
            (Some(got), Some(like)) => check_shape("plain", &got.dims(), &need(like)),
            (Some(_), None) => Err(InputError::new("plain", "plain latents", "none")),
            (None, Some(like)) => Err(InputError::new("plain", "none", format!("{:?}", need(like)))),
        }
    }
}

/// The streaming state of one layer: keys and **mixed** values, or mixed latents.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one a layer, and all of a model are of one kind")]
pub enum MoveCache {
    /// Of [`MoveAttention`](super::MoveAttention).
    Full(KvCache),
    /// Of [`MoveLatentAttention`](super::MoveLatentAttention).
    Latent(MoveLatentCache),
}

impl MoveCache {
    /// Number of tokens seen, so also the position of the next one.
    pub fn position(&self) -> usize {
        match self {
            Self::Full(cache) => cache.position,
            Self::Latent(cache) => cache.position,
        }
    }

    /// The device that it is on.
    pub(super) fn device(&self) -> Device {
        match self {
            Self::Full(cache) => cache.keys.device(),
            Self::Latent(cache) => cache.mixed.device(),
        }
    }

    /// Checks the cache against the layer's `empty` one.
    pub(super) fn check(&self, empty: &Self, batch: usize) -> Result<(), InputError> {
        match (self, empty) {
            (Self::Full(cache), Self::Full(empty)) => {
                let [_, _, heads, dim] = empty.keys.dims();
                let need = [batch, cache.len(), heads, dim];
                check_shape("keys", &cache.keys.dims(), &need)?;
                check_shape("values", &cache.values.dims(), &need)
            }
            (Self::Latent(cache), Self::Latent(empty)) => cache.check(empty, batch),
            (Self::Full(_), Self::Latent(_)) => Err(InputError::new("cache", "keys and values", "latents")),
            (Self::Latent(_), Self::Full(_)) => Err(InputError::new("cache", "latents", "keys and values")),
        }
    }
}

impl MixerState for MoveCache {
    const MIXER: &'static str = "mixture_of_value_embeddings";

    fn bytes(&self) -> usize {
        match self {
            Self::Full(cache) => cache.bytes(),
            Self::Latent(cache) => {
                tensor_bytes(&cache.mixed)
                    + cache.plain.as_ref().map_or(0, tensor_bytes)
                    + tensor_bytes(&cache.rotated)
            }
        }
    }

    fn to_device(self, device: &Device) -> Self {
        match self {
            Self::Full(cache) => Self::Full(cache.to_device(device)),
            Self::Latent(cache) => Self::Latent(MoveLatentCache {
                mixed: cache.mixed.to_device(device),
                plain: cache.plain.map(|plain| plain.to_device(device)),
                rotated: cache.rotated.to_device(device),
                position: cache.position,
            }),
        }
    }

    fn to_tensors(&self) -> NamedTensors {
        match self {
            Self::Full(cache) => cache.to_tensors(),
            Self::Latent(cache) => {
                let mut tensors = NamedTensors::from([
                    ("mixed".to_string(), state_data(&cache.mixed)),
                    ("rotated".to_string(), state_data(&cache.rotated)),
                    ("position".to_string(), TensorData::from([cache.position as i64])),
                ]);
                if let Some(plain) = &cache.plain {
                    tensors.insert("plain".to_string(), state_data(plain));
                }
                tensors
            }
        }
    }

    fn from_tensors(mut tensors: NamedTensors, device: &Device) -> Result<Self, TensorError> {
        if !tensors.contains_key("mixed") {
            return KvCache::from_tensors(tensors, device).map(Self::Full);
        }
        let mut batch = None;
        let mixed: Tensor<3> = take_state_tensor(&mut tensors, "mixed", &mut batch, device)?;
        let rotated: Tensor<3> = take_state_tensor(&mut tensors, "rotated", &mut batch, device)?;
        let plain: Option<Tensor<3>> = match tensors.contains_key("plain") {
            true => Some(take_state_tensor(&mut tensors, "plain", &mut batch, device)?),
            false => None,
        };
        let position =
            tensors.remove("position").ok_or_else(|| TensorError::new("position", TensorProblem::Missing))?;
        no_more_tensors(tensors)?;
        let held = mixed.dims()[1];
        for (name, steps) in [("rotated", Some(&rotated)), ("plain", plain.as_ref())] {
            if let Some(tensor) = steps.filter(|tensor| tensor.dims()[1] != held) {
                let (got, need) = (tensor.dims().to_vec(), format!("{held} tokens, as `mixed`"));
                return Err(TensorError::new(name, TensorProblem::Shape { got, need }));
            }
        }
        match position.as_slice::<i64>() {
            Ok(&[position]) if usize::try_from(position).is_ok_and(|position| position >= held) => {
                Ok(Self::Latent(MoveLatentCache { mixed, plain, rotated, position: position as usize }))
            }
            _ => {
                let (got, need) =
                    (position.to_string(), format!("one integer of at least {held}, the tokens held"));
                Err(TensorError::new("position", TensorProblem::Value { got, need }))
            }
        }
    }
}
