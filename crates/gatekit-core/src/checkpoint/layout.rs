//! What published files call a module's tensors, and how they cut them.
//!
//! A module keeps the names and forms that its code needs; a [`TensorLayout`] is the one place
//! that says what another library calls them. Every tensor of a module is one or several
//! published tensors, whose values follow one another in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use burn::module::Module;
use burn::store::burn_pack::{Error as PackError, Tensor as LazyTensor};
use burn::tensor::{Bytes, DType, TensorData};

use super::error::{TensorError, TensorProblem};
use super::tensors::{NamedTensors, Source, collect};

/// How the published tensors of a model correspond to its module's.
///
/// Patterns are names in which `{}` stands for a number, the same in the module's and in the
/// published name (`model.layers.{}.attn.`).
///
/// ```
/// use gatekit_core::checkpoint::TensorLayout;
///
/// let layout = TensorLayout::default()
///     .with_prefix("model.layers.{}.attn.", "model.layers.{}.self_attn.")
///     .with_experts("model.layers.{}.mlp.experts.gate_up_proj", &["w1.weight", "w3.weight"])
///     .with_shape("model.layers.{}.self_attn.A_log", &[1, 1, 0, 1]);
/// assert_eq!(layout.published_names("model.layers.3.attn.q_proj.weight", &[8, 8]), ["model.layers.3.self_attn.q_proj.weight"]);
/// assert_eq!(
///     layout.published_names("model.layers.0.mlp.experts.gate_up_proj", &[1, 8, 4]),
///     ["model.layers.0.mlp.experts.0.w1.weight", "model.layers.0.mlp.experts.0.w3.weight"]
/// );
/// ```
#[derive(Debug, Clone, Default)]
pub struct TensorLayout {
    /// Module's prefix and published prefix, applied one after the other.
    prefixes: Vec<(Pattern, String)>,
    /// Stacked tensors and the parts of every expert.
    experts: Vec<(Pattern, Vec<String>)>,
    /// Published names and their shapes, 0 for all elements.
    shapes: Vec<(Pattern, Vec<usize>)>,
    /// Prefixes of published tensors that the module does not need.
    ignored: Vec<Pattern>,
    /// Last segments of published tensors that the module does not need.
    ignored_last: Vec<String>,
    /// Published names and what an error about their shape says besides.
    notes: Vec<(Pattern, String)>,
}

/// A published tensor that is a whole tensor of the module or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub name: String,
    pub shape: Vec<usize>,
    /// Said of a wrong shape besides the one needed.
    pub note: Option<String>,
}

impl TensorLayout {
    /// Names that begin with `module` begin with `published` instead. Rules apply one after the
    /// other, each to what the ones before it made, each at most once.
    pub fn with_prefix(mut self, module: &str, published: &str) -> Self {
        self.prefixes.push((Pattern::new(module), published.to_string()));
        self
    }

    /// The module's tensor `[E, rows, columns]` (or `[E, rows]`) named `stacked` (before any prefix is
    /// replaced) is published as one matrix (or vector) an expert and part, `<parent>.{e}.<part>`, where
    /// the parent is the name without its last segment. The parts have equally many rows and follow one
    /// another.
    pub fn with_experts(mut self, stacked: &str, parts: &[&str]) -> Self {
        let parts = parts.iter().map(|part| part.to_string()).collect();
        self.experts.push((Pattern::new(stacked), parts));
        self
    }

    /// The published tensor of this name has this shape, where 0 stands for all elements of the
    /// module's tensor.
    pub fn with_shape(mut self, published: &str, shape: &[usize]) -> Self {
        self.shapes.push((Pattern::new(published), shape.to_vec()));
        self
    }

    /// Published tensors that begin so are passed over: a tied head, frequencies of a rotation.
    pub fn with_ignored(mut self, published: &str) -> Self {
        self.ignored.push(Pattern::new(published));
        self
    }

    /// Published tensors whose names end with this segment are passed over: the counters of batch
    /// normalisations.
    pub fn with_ignored_last(mut self, segment: &str) -> Self {
        self.ignored_last.push(segment.to_string());
        self
    }

    /// What an error about the shape of the published tensor of this name says besides.
    pub fn with_note(mut self, published: &str, note: &str) -> Self {
        self.notes.push((Pattern::new(published), note.to_string()));
        self
    }

    /// The published names of a module's tensor, in the order in which their values follow one
    /// another.
    pub fn published_names(&self, name: &str, shape: &[usize]) -> Vec<String> {
        self.pieces(name, shape).map(|piece| piece.name).collect()
    }

    /// Brings published tensors into the module's names and forms. What belongs to no tensor of
    /// the module keeps its name, so that it is refused when the module takes the tensors.
    ///
    /// # Errors
    ///
    /// [`TensorError`] names a part that is missing or of another shape than its module's tensor
    /// needs.
    pub fn to_module<M: Module>(
        &self,
        module: &M,
        mut published: NamedTensors,
    ) -> Result<NamedTensors, TensorError> {
        let mut tensors = NamedTensors::new();
        for parameter in collect(module, Source::Shapes) {
            let shape = parameter.shape.to_vec();
            let parts = (self.pieces(&parameter.name, &shape))
                .map(|piece| {
                    let data = published.remove(&piece.name).ok_or_else(|| piece.missing())?;
                    piece.check(data.shape())?;
                    Ok(data)
                })
                .collect::<Result<Vec<_>, TensorError>>()?;
            tensors.insert(parameter.name, join(parts, shape));
        }
        published.retain(|name, _| !self.ignores(name));
        tensors.extend(published);
        Ok(tensors)
    }

    /// Cuts and names a module's tensors (or gradients) as they are published.
    pub fn to_published(&self, tensors: NamedTensors) -> NamedTensors {
        let mut published = NamedTensors::new();
        for (name, data) in tensors {
            let dtype = data.dtype();
            let mut start = 0;
            for piece in self.pieces(&name, data.shape()) {
                let end = start + piece.bytes(dtype);
                let bytes = data.bytes()[start..end].to_vec();
                published.insert(piece.name, TensorData::from_bytes_vec(bytes, piece.shape, dtype));
                start = end;
            }
        }
        published
    }

    pub(super) fn ignores(&self, published: &str) -> bool {
        let last = published.rsplit('.').next().unwrap_or_default();
        self.ignored.iter().any(|prefix| prefix.after(published).is_some())
            || self.ignored_last.iter().any(|segment| segment == last)
    }

    /// The published tensors of a module's, made as they are asked for: a damaged configuration may
    /// promise any number of experts.
    pub(super) fn pieces<'a>(
        &'a self,
        name: &'a str,
        shape: &[usize],
    ) -> Box<dyn Iterator<Item = Piece> + 'a> {
        let experts = self.experts.iter().find(|(stacked, _)| stacked.is(name));
        let (Some((_, parts)), &[count, rows, ref columns @ ..]) = (experts, shape) else {
            let name = self.published(name);
            let shape = self.published_shape(&name, shape);
            let note = self.notes.iter().find(|(of, _)| of.is(&name)).map(|(_, note)| note.clone());
            return Box::new(std::iter::once(Piece { name, shape, note }));
        };
        let parent = name.rsplit_once('.').map_or("", |(parent, _)| parent);
        let shape: Vec<usize> = std::iter::once(rows / parts.len()).chain(columns.iter().copied()).collect();
        let pieces = (0..count)
            .flat_map(move |expert| parts.iter().map(move |part| format!("{parent}.{expert}.{part}")))
            .map(move |name| Piece { name: self.published(&name), shape: shape.clone(), note: None });
        Box::new(pieces)
    }

    fn published(&self, name: &str) -> String {
        self.prefixes.iter().fold(name.to_string(), |name, (prefix, published)| match prefix.after(&name) {
            Some((numbers, rest)) => fill(published, &numbers) + rest,
            None => name,
        })
    }

    fn published_shape(&self, published: &str, shape: &[usize]) -> Vec<usize> {
        match self.shapes.iter().find(|(name, _)| name.is(published)) {
            None => shape.to_vec(),
            Some((_, form)) => {
                let elements = shape.iter().fold(1usize, |product, size| product.saturating_mul(*size));
                form.iter().map(|&size| if size == 0 { elements } else { size }).collect()
            }
        }
    }

    /// A module's tensors cut and named as they are published, still unread.
    pub(super) fn publish(&self, tensor: LazyTensor) -> Vec<LazyTensor> {
        let (name, shape) = (tensor.name.clone(), tensor.shape.to_vec());
        let dtype = tensor.dtype;
        // Read once, when the first piece is asked for; freed with the last.
        let whole = Arc::new(Mutex::new(Whole::Unread(tensor)));
        let mut start = 0;
        (self.pieces(&name, &shape))
            .map(|piece| {
                let (from, bytes) = (start, piece.bytes(dtype));
                start += bytes;
                let whole = Arc::clone(&whole);
                LazyTensor::deferred(piece.name, dtype, piece.shape, None, bytes, move || {
                    let mut whole = whole.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    Ok(Bytes::from_bytes_vec(whole.bytes()?[from..from + bytes].to_vec()))
                })
            })
            .collect()
    }
}

impl Piece {
    pub(super) fn missing(&self) -> TensorError {
        TensorError::new(&self.name, TensorProblem::Missing)
    }

    pub(super) fn check(&self, got: &[usize]) -> Result<(), TensorError> {
        if got == self.shape {
            return Ok(());
        }
        let note = self.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
        let problem = TensorProblem::Shape { got: got.to_vec(), need: format!("{:?}{note}", self.shape) };
        Err(TensorError::new(&self.name, problem))
    }

    fn bytes(&self, dtype: DType) -> usize {
        self.shape.iter().product::<usize>() * dtype.size()
    }
}

/// Values that follow one another, as one tensor of `shape`.
pub(super) fn join(parts: Vec<TensorData>, shape: Vec<usize>) -> TensorData {
    let dtype = parts.first().map_or(DType::F32, |part| part.dtype());
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes().iter().copied()).collect();
    TensorData::from_bytes_vec(bytes, shape, dtype)
}

/// A tensor that is read from its device when it is first asked for.
enum Whole {
    Unread(LazyTensor),
    Read(Vec<u8>),
    Failed,
}

impl Whole {
    fn bytes(&mut self) -> Result<&[u8], PackError> {
        if let Self::Unread(_) = self
            && let Self::Unread(tensor) = std::mem::replace(self, Self::Failed)
        {
            *self = Self::Read(tensor.into_bytes()?.to_vec());
        }
        match self {
            Self::Read(bytes) => Ok(bytes),
            _ => Err(PackError::ValidationError("could not be read from its device".to_string())),
        }
    }
}

/// A name in which `{}` stands for a number.
#[derive(Debug, Clone)]
struct Pattern(Vec<String>);

impl Pattern {
    fn new(pattern: &str) -> Self {
        Self(pattern.split("{}").map(str::to_string).collect())
    }

    /// The numbers, and what follows the pattern in `name`.
    fn after<'a>(&self, name: &'a str) -> Option<(Vec<&'a str>, &'a str)> {
        let mut parts = self.0.iter();
        let mut rest = name.strip_prefix(parts.next()?.as_str())?;
        let mut numbers = Vec::new();
        for part in parts {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            if digits == 0 {
                return None;
            }
            numbers.push(&rest[..digits]);
            rest = rest[digits..].strip_prefix(part.as_str())?;
        }
        Some((numbers, rest))
    }

    fn is(&self, name: &str) -> bool {
        self.after(name).is_some_and(|(_, rest)| rest.is_empty())
    }
}

fn fill(pattern: &str, numbers: &[&str]) -> String {
    let mut parts = pattern.split("{}");
    let mut name = parts.next().unwrap_or_default().to_string();
    for (part, number) in parts.zip(numbers) {
        name.push_str(number);
        name.push_str(part);
    }
    name
}

/// Compares the names and shapes of a whole checkpoint with a module's, without making the
/// module allocate its parameters.
pub(super) fn check_published<M: Module>(
    module: &M,
    layout: &TensorLayout,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<(), TensorError> {
    let mut unexpected: BTreeSet<&String> = shapes.keys().filter(|name| !layout.ignores(name)).collect();
    for parameter in collect(module, Source::Shapes) {
        for piece in layout.pieces(&parameter.name, &parameter.shape) {
            piece.check(shapes.get(&piece.name).ok_or_else(|| piece.missing())?)?;
            unexpected.remove(&piece.name);
        }
    }
    match unexpected.into_iter().next() {
        Some(name) => Err(TensorError::new(name, TensorProblem::Unexpected)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
