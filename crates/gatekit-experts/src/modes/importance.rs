//! How much every layer matters to every modality.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::checkpoint::{CheckpointError, NamedTensors, SafetensorsFile};

use super::skipper::check_importance;

/// Name of the table in a file.
const NAME: &str = "importance";

/// The importance `alpha[l, m]` of the routed experts of layer l for text (m = 0) and vision
/// (m = 1) tokens.
///
/// Every layer of a model holds its row ([`ExpertSkipper::importance`](super::ExpertSkipper)), so
/// that a model's checkpoint has the table; this is the table by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerImportance {
    rows: Vec<[f64; 2]>,
}

impl LayerImportance {
    /// From a row a layer.
    ///
    /// # Errors
    ///
    /// [`InputError`] without a layer, and for a value that is negative or not finite.
    pub fn new(rows: Vec<[f64; 2]>) -> Result<Self, InputError> {
        if rows.is_empty() {
            return Err(InputError::new("importance", "0 layers", "at least 1"));
        }
        for (layer, row) in rows.iter().enumerate() {
            check_importance(*row, &format!(" in layer {}", layer + 1))?;
        }
        Ok(Self { rows })
    }

    /// From the divergences `delta[l, m]` that each layer's absence causes:
    /// `alpha[l, m] = delta[l, m] / sum_l delta[l, m]`, left as it is where the sum is 0.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn from_divergence(divergence: &[[f64; 2]]) -> Result<Self, InputError> {
        let mut sums = [0.0; 2];
        for row in divergence {
            (0..2).for_each(|modality| sums[modality] += row[modality]);
        }
        let normal = |row: &[f64; 2]| {
            std::array::from_fn(|modality| match sums[modality] > 0.0 {
                true => row[modality] / sums[modality],
                false => row[modality],
            })
        };
        Self::new(divergence.iter().map(normal).collect())
    }

    /// From a tensor `[L, 2]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for another number of columns, or as [`new`](Self::new).
    pub fn from_tensor(table: &Tensor<2>) -> Result<Self, InputError> {
        let data = table.to_data();
        Self::from_data(data)
    }

    fn from_data(data: TensorData) -> Result<Self, InputError> {
        let shape = data.shape().to_vec();
        if shape.len() != 2 || shape[1] != 2 {
            return Err(InputError::new("importance", format!("shape {shape:?}"), "[layers, 2]"));
        }
        let values: Vec<f64> = data.iter::<f64>().collect();
        Self::new(values.chunks_exact(2).map(|row| [row[0], row[1]]).collect())
    }

    /// Number of layers L.
    pub fn layers(&self) -> usize {
        self.rows.len()
    }

    /// A row a layer: text, vision.
    pub fn rows(&self) -> &[[f64; 2]] {
        &self.rows
    }

    /// The table on a device, `[L, 2]`.
    pub fn to_tensor(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(self.data(), device)
    }

    fn data(&self) -> TensorData {
        TensorData::new(self.rows.concat(), [self.rows.len(), 2])
    }

    /// Writes the table to a safetensors file, as float32 under the name `importance`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CheckpointError> {
        let data = self.data().convert::<f32>();
        SafetensorsFile::write(path.as_ref(), NamedTensors::from([(NAME.to_string(), data)]), HashMap::new())
    }

    /// Reads a table that [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the file cannot be read or holds no importance table.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let data = SafetensorsFile::open(path)?.read(NAME)?;
        Self::from_data(data).map_err(|error| CheckpointError::malformed(path, error.to_string()))
    }
}
