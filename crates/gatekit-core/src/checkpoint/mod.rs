//! Model folders as the published checkpoints have them.
//!
//! A folder holds `config.json` and the weights: either `model.safetensors`, or shards
//! `model-0000i-of-0000n.safetensors` with `model.safetensors.index.json`, which says which
//! tensor is in which shard. Tensors are in PyTorch's layout (`Linear.weight` is `[out, in]`)
//! under the published names.
//!
//! Everything read is checked before it is used: lengths against the file's, names and shapes
//! against the model that the configuration describes, values for NaN and infinity. What does
//! not fit is a [`CheckpointError`] that names the file and the tensor.

mod config;
mod error;
mod file;
mod folder;
mod layout;
mod sizes;
mod tensors;
mod weights;

pub use config::{PretrainedConfig, check_architecture, config_from_json, require};
pub use error::{CheckpointError, TensorError, TensorProblem};
pub use file::SafetensorsFile;
pub use folder::{load_pretrained, save_pretrained};
pub use layout::TensorLayout;
pub use tensors::{NamedTensors, load_tensors, named_gradients, named_parameters};
pub use weights::{load_weights, save_weights};
