//! The weights of a module alone, in one file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Module;

use super::error::CheckpointError;
use super::file::SafetensorsFile;
use super::layout::{TensorLayout, check_published, join};
use super::tensors::{Source, apply, collect, named_parameters};

/// Replaces every float parameter and buffer of a module by those of a safetensors file under the published names of
/// `layout`. F16, BF16 and F64 become float32. For models that are published without a configuration; the others are
/// read by [`load_pretrained`](super::load_pretrained).
///
/// Names and shapes are compared before any value is read.
///
/// # Errors
///
/// [`CheckpointError`] names the file, and the tensor: a file that is missing, truncated or contradicts its header; a
/// tensor that is missing, unexpected, of another shape or no float, or a value that is not finite.
pub fn load_weights<M: Module>(
    module: M,
    path: impl AsRef<Path>,
    layout: &TensorLayout,
) -> Result<M, CheckpointError> {
    let path = path.as_ref();
    let mut file = SafetensorsFile::open(path)?;
    let shapes = file.names().into_iter().filter_map(|name| {
        let shape = file.shape(&name)?.to_vec();
        Some((name, shape))
    });
    let shapes: BTreeMap<_, _> = shapes.collect();
    check_published(&module, layout, &shapes).map_err(|error| error.at(path))?;
    let mut tensors = BTreeMap::new();
    for parameter in collect(&module, Source::Shapes) {
        let shape = parameter.shape.to_vec();
        let pieces = layout.pieces(&parameter.name, &shape);
        let parts = pieces.map(|piece| file.read(&piece.name)).collect::<Result<_, _>>()?;
        tensors.insert(parameter.name, join(parts, shape));
    }
    apply(module, tensors).map_err(|error| error.at(path))
}

/// Writes every float parameter and buffer of a module to a safetensors file, as [`load_weights`] reads it.
///
/// # Errors
///
/// [`CheckpointError`] when the file cannot be written.
///
/// # Panics
///
/// When the device fails to hand a value back.
pub fn save_weights<M: Module>(
    module: &M,
    path: impl AsRef<Path>,
    layout: &TensorLayout,
) -> Result<(), CheckpointError> {
    let tensors = layout.to_published(named_parameters(module));
    SafetensorsFile::write(path.as_ref(), tensors, HashMap::from([("format".to_string(), "pt".to_string())]))
}
