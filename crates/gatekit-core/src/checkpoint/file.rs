//! One safetensors file, read and written without trusting it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::store::bridge;
use burn::store::burn_pack::{AtomicFile, Tensor as LazyTensor};
use burn::tensor::{DType, TensorData, bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::error::{CheckpointError, TensorError, TensorProblem};
use super::tensors::NamedTensors;

/// Bytes of the length that stands before the header.
const LENGTH_BYTES: u64 = 8;
/// No real header is longer; the format's own libraries have the same bound.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open safetensors file whose header has been checked against the file's length.
///
/// Tensors are read one at a time, so that memory is bounded by the largest of them.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    header: Metadata,
}

impl SafetensorsFile {
    /// Opens a file and checks its header: that it fits into the file, that every tensor's bytes
    /// follow from its shape and element type, and that they fill the rest of the file exactly.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the file is missing, truncated or contradicts its header.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |error| CheckpointError::io(path, error);
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length < LENGTH_BYTES {
            let reason = format!("truncated: {length} bytes, not even the header's length");
            return Err(CheckpointError::malformed(path, reason));
        }
        let mut prefix = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut prefix).map_err(io)?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > (length - LENGTH_BYTES).min(MAX_HEADER_BYTES) {
            let reason = format!("promises a header of {header_length} bytes, the file has {length}");
            return Err(CheckpointError::malformed(path, reason));
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| CheckpointError::malformed(path, format!("unusable header: {error}")))?;
        let data_start = LENGTH_BYTES + header_length;
        if header.data_len() as u64 != length - data_start {
            let reason = format!(
                "truncated or overlong: promises {} bytes of tensors, has {}",
                header.data_len(),
                length - data_start
            );
            return Err(CheckpointError::malformed(path, reason));
        }
        Ok(Self { path: path.to_path_buf(), file, data_start, header })
    }

    /// Names of its tensors, in the order of their bytes.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// An entry of the header's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Shape of a tensor, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// Reads a tensor: floats (F16, BF16, F32, F64) as float32, integers (I64) as they are.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the tensor is missing, of another element type, or holds a NaN or
    /// an infinity.
    pub fn read(&mut self, name: &str) -> Result<TensorData, CheckpointError> {
        let refuse = |problem| TensorError::new(name, problem).at(&self.path);
        let info = self.header.info(name).ok_or_else(|| refuse(TensorProblem::Missing))?;
        let (dtype, shape) = (info.dtype, info.shape.clone());
        if !matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 | Dtype::I64) {
            return Err(refuse(TensorProblem::Dtype { got: dtype.to_string() }));
        }
        // The header was checked: these bytes lie within the file.
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|error| CheckpointError::io(&self.path, error))?;
        let values: Vec<f32> = match dtype {
            Dtype::F16 => decode(&bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => decode(&bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F64 => decode(&bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::I64 => return Ok(TensorData::new(decode(&bytes, i64::from_le_bytes), shape)),
            _ => decode(&bytes, f32::from_le_bytes),
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(refuse(TensorProblem::NotFinite { value: values[index], index }));
        }
        Ok(TensorData::new(values, shape))
    }

    /// Writes tensors to `path`: to a file beside it first, flushed, then renamed onto it.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the file cannot be written.
    pub fn write(
        path: &Path,
        tensors: NamedTensors,
        metadata: HashMap<String, String>,
    ) -> Result<(), CheckpointError> {
        let tensors = tensors.into_iter().map(|(name, data)| bridge::from_data(data, name, None)).collect();
        commit(stage(path, tensors, metadata)?, path)
    }
}

fn decode<const N: usize, E>(bytes: &[u8], value: impl Fn([u8; N]) -> E) -> Vec<E> {
    let (values, _) = bytes.as_chunks::<N>();
    values.iter().map(|&bytes| value(bytes)).collect()
}

/// Writes tensors beside `path`, each read back from its device only when its turn comes.
/// [`commit`] then gives the file its name.
pub(super) fn stage(
    path: &Path,
    mut tensors: Vec<LazyTensor>,
    metadata: HashMap<String, String>,
) -> Result<AtomicFile, CheckpointError> {
    // Wider elements first keeps every tensor aligned.
    tensors.sort_by(|a, b| (b.dtype.size(), &a.name).cmp(&(a.dtype.size(), &b.name)));
    let mut offset = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let dtype = element_type(tensor.dtype).ok_or_else(|| {
            TensorError::new(&tensor.name, TensorProblem::Dtype { got: format!("{:?}", tensor.dtype) })
                .at(path)
        })?;
        let end = offset + tensor.byte_len();
        let info = TensorInfo { dtype, shape: tensor.shape.to_vec(), data_offsets: (offset, end) };
        infos.push((tensor.name.clone(), info));
        offset = end;
    }
    let header = Metadata::new(Some(metadata), infos)
        .map_err(|error| CheckpointError::malformed(path, error.to_string()))?;
    let mut header =
        serde_json::to_vec(&header).map_err(|error| CheckpointError::malformed(path, error.to_string()))?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');

    let (guard, file) = AtomicFile::create(path).map_err(|error| write_error(path, error))?;
    let io = |error| CheckpointError::io(path, error);
    let mut out = BufWriter::new(file);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(&header).map_err(io)?;
    for tensor in tensors {
        let name = tensor.name.clone();
        let bytes = tensor.into_bytes().map_err(|error| {
            TensorError::new(name, TensorProblem::Device { reason: error.to_string() }).at(path)
        })?;
        out.write_all(&bytes).map_err(io)?;
    }
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    Ok(guard)
}

/// Renames a staged file onto `path`.
pub(super) fn commit(staged: AtomicFile, path: &Path) -> Result<(), CheckpointError> {
    staged.commit().map_err(|error| write_error(path, error))
}

/// Writes text to `path`: beside it first, flushed, then renamed onto it.
pub(super) fn write_text(path: &Path, text: &str) -> Result<(), CheckpointError> {
    let (guard, mut file) = AtomicFile::create(path).map_err(|error| write_error(path, error))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| CheckpointError::io(path, error))?;
    commit(guard, path)
}

fn write_error(path: &Path, error: burn::store::burn_pack::Error) -> CheckpointError {
    CheckpointError::io(path, io::Error::other(error.to_string()))
}

fn element_type(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 | DType::Flex32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        _ => return None,
    })
}
