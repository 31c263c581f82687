//! Streaming states: of a mixer, of a model, and how they are saved and read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::checkpoint::{CheckpointError, NamedTensors, SafetensorsFile, TensorError, TensorProblem};

use super::MAX_LAYERS;
use crate::lm::StreamState;

/// The streaming state of one [`TokenMixer`](super::TokenMixer).
pub trait MixerState: Clone + Send {
    /// Name of the mixer in saved states.
    const MIXER: &'static str;

    /// Bytes that its tensors hold on the device.
    fn bytes(&self) -> usize;

    /// The same state on another device.
    fn to_device(self, device: &Device) -> Self;

    /// Its tensors by name, read back to the host.
    fn to_tensors(&self) -> NamedTensors;

    /// The inverse of [`to_tensors`](Self::to_tensors).
    ///
    /// # Errors
    ///
    /// [`TensorError`] for a tensor that is missing, unexpected or of a wrong shape.
    fn from_tensors(tensors: NamedTensors, device: &Device) -> Result<Self, TensorError>;
}

/// The streaming state of a [`CausalModel`](super::CausalModel): one state a layer.
#[derive(Debug, Clone)]
pub struct ModelState<S> {
    /// The layers' states, first to last.
    pub layers: Vec<S>,
}

/// Header entries by which a saved state is recognised.
const STATE_FORMAT: &str = "gatekit-state-1";

impl<S: MixerState> StreamState for ModelState<S> {
    fn bytes(&self) -> usize {
        self.layers.iter().map(MixerState::bytes).sum()
    }

    fn to_device(self, device: &Device) -> Self {
        Self { layers: self.layers.into_iter().map(|layer| layer.to_device(device)).collect() }
    }

    fn save(&self, path: impl AsRef<Path>) -> Result<(), CheckpointError> {
        let tensors: NamedTensors = (self.layers.iter().enumerate())
            .flat_map(|(index, layer)| {
                layer
                    .to_tensors()
                    .into_iter()
                    .map(move |(name, data)| (format!("layers.{index}.{name}"), data))
            })
            .collect();
        let metadata = HashMap::from([
            ("format".to_string(), STATE_FORMAT.to_string()),
            ("mixer".to_string(), S::MIXER.to_string()),
            ("layers".to_string(), self.layers.len().to_string()),
        ]);
        SafetensorsFile::write(path.as_ref(), tensors, metadata)
    }

    fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let mut file = SafetensorsFile::open(path)?;
        for (key, need) in [("format", STATE_FORMAT), ("mixer", S::MIXER)] {
            let got = file.metadata(key).unwrap_or("nothing");
            if got != need {
                return Err(CheckpointError::malformed(path, format!("`{key}` is {got}, need {need}")));
            }
        }
        let mut layers: Vec<NamedTensors> = match file.metadata("layers").and_then(|count| count.parse().ok())
        {
            Some(count @ 1..=MAX_LAYERS) => vec![BTreeMap::new(); count],
            _ => return Err(CheckpointError::malformed(path, "`layers` is not a number of layers")),
        };
        for name in file.names() {
            let layer = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
            let slot = layer.and_then(|(index, _)| layers.get_mut(index.parse::<usize>().ok()?));
            match (layer, slot) {
                (Some((_, rest)), Some(slot)) => slot.insert(rest.to_string(), file.read(&name)?),
                _ => return Err(TensorError::new(name, TensorProblem::Unexpected).at(path)),
            };
        }
        let layers = (layers.into_iter().enumerate())
            .map(|(index, tensors)| {
                S::from_tensors(tensors, device)
                    .map_err(|error| error.within(&format!("layers.{index}")).at(path))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { layers })
    }
}

/// Takes the named tensor `[D axes]` out of a state's tensors; `batch` is compared with (and, from
/// the first tensor on, set to) its first axis.
pub(crate) fn take_state_tensor<const D: usize>(
    tensors: &mut NamedTensors,
    name: &str,
    batch: &mut Option<usize>,
    device: &Device,
) -> Result<Tensor<D>, TensorError> {
    let data = tensors.remove(name).ok_or_else(|| TensorError::new(name, TensorProblem::Missing))?;
    let fits = data.rank() == D && *batch.get_or_insert(data.shape()[0]) == data.shape()[0];
    if !fits {
        let need = match batch {
            Some(batch) => format!("{D} axes, the first of {batch}"),
            None => format!("{D} axes"),
        };
        return Err(TensorError::new(name, TensorProblem::Shape { got: data.shape().to_vec(), need }));
    }
    Ok(Tensor::from_data(data, device))
}

/// Takes `position`, a number of tokens, out of a state's tensors.
pub(crate) fn take_position(tensors: &mut NamedTensors) -> Result<usize, TensorError> {
    let position =
        tensors.remove("position").ok_or_else(|| TensorError::new("position", TensorProblem::Missing))?;
    match position.as_slice::<i64>() {
        Ok(&[count]) if count >= 0 => Ok(count as usize),
        _ => {
            let (got, need) = (position.to_string(), "one integer of at least 0".to_string());
            Err(TensorError::new("position", TensorProblem::Value { got, need }))
        }
    }
}

/// A position as [`take_position`] reads it.
pub(crate) fn position_data(position: usize) -> TensorData {
    TensorData::from([position as i64])
}

/// Refuses what is left of a state's tensors.
pub(crate) fn no_more_tensors(tensors: NamedTensors) -> Result<(), TensorError> {
    match tensors.into_keys().next() {
        Some(name) => Err(TensorError::new(name, TensorProblem::Unexpected)),
        None => Ok(()),
    }
}

/// Compares the shape of a state's part with what a layer needs.
pub(crate) fn check_shape(field: &str, got: &[usize], need: &[usize]) -> Result<(), InputError> {
    match got == need {
        true => Ok(()),
        false => Err(InputError::new(field, format!("shape {got:?}"), format!("{need:?}"))),
    }
}

/// Bytes of a tensor on its device.
pub(crate) fn tensor_bytes<const D: usize>(tensor: &Tensor<D>) -> usize {
    tensor.shape().num_elements() * tensor.dtype().size()
}

/// A tensor read back as float32, the precision in which states are saved.
pub(crate) fn state_data<const D: usize>(tensor: &Tensor<D>) -> TensorData {
    tensor.to_data_as::<f32>()
}
