//! The class-conditional model of pictures.

use burn::module::Module;
use burn::nn::{Dropout, Embedding, Linear};
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::feed_forward::SwiGlu;
use gatekit_core::norm::RmsNorm;

use super::bank::check_range;
use super::cache::MoveCache;
use super::image_attention::MoveImageAttention;
use super::memory::ValueEmbeddings;
use super::text::check_caches;
use crate::backbone::ModelState;
use crate::lm::Targets;

/// The streaming state of [`MoveImageModel`]: keys and mixed values of the class and the codes so far.
pub type MoveImageState = ModelState<MoveCache>;

/// One layer: `x += attn(RMSNorm(x)); x += SwiGLU(RMSNorm(x))`.
#[derive(Module, Debug)]
pub struct MoveImageBlock {
    /// Norm before the attention.
    pub attention_norm: RmsNorm,
    /// The attention.
    pub attention: MoveImageAttention,
    /// Norm before the feed-forward layer.
    pub ffn_norm: RmsNorm,
    /// The feed-forward layer.
    pub feed_forward: SwiGlu,
    /// Dropout of both layers' outputs.
    pub dropout: Dropout,
}

/// A model of pictures as codes, row by row, under the condition of a class.
///
/// ```text
/// x = [E_class[y], E_code[c_1], ..., E_code[c_{N-1}]]
/// x += attn(RMSNorm(x), memory);   x += SwiGLU(RMSNorm(x))      (per layer)
/// logits = W_out RMSNorm(x)                                     position j is for code c_j
/// ```
///
/// In the memory a code c has row c and a class y row `vocab_size + y`; the last class means "no
/// class", for guidance. Start values as in the text model, norms at 1. Made by
/// [`MoveImageConfig`](super::MoveImageConfig).
#[derive(Module, Debug)]
pub struct MoveImageModel {
    /// Class embeddings, `[num_classes + 1, d]`.
    pub cls_embedding: Embedding,
    /// Code embeddings, `[vocab_size, d]`.
    pub tok_embeddings: Embedding,
    /// The layers, first to last.
    pub layers: Vec<MoveImageBlock>,
    /// The last norm.
    pub norm: RmsNorm,
    /// The head, `[d, vocab_size]`.
    pub output: Linear,
    /// The memory: one bank for all layers, tables of single layers, or none.
    pub value_embeds: Option<ValueEmbeddings>,
    /// Dropout of the embeddings.
    pub dropout: Dropout,
    pub(super) grid_size: usize,
}

impl MoveImageModel {
    /// Number of codes.
    pub fn vocab_size(&self) -> usize {
        self.tok_embeddings.weight.lazy_shape()[0]
    }

    /// The label that means "no class": the number of classes.
    pub fn no_class(&self) -> usize {
        self.cls_embedding.weight.lazy_shape()[0] - 1
    }

    /// Codes that a picture has at most.
    pub fn max_codes(&self) -> usize {
        self.grid_size * self.grid_size
    }

    /// Checks codes `[batch, N]` and labels `[batch]` that come from outside; reads them back.
    ///
    /// # Errors
    ///
    /// [`InputError`] for an empty batch or picture, more codes than the grid has, another number of
    /// labels, or a code or label out of range, with its value and place.
    pub fn check_inputs(&self, codes: &Tensor<2, Int>, labels: &Tensor<1, Int>) -> Result<(), InputError> {
        let ([batch, count], most) = (codes.dims(), self.max_codes());
        if count > most {
            let need = format!("at most {most}, the grid's {0} x {0}", self.grid_size);
            return Err(InputError::new("codes", format!("{count} codes a picture"), need));
        }
        check_range("codes", codes, self.vocab_size())?;
        if labels.dims() != [batch] {
            return Err(InputError::new(
                "labels",
                format!("shape {:?}", labels.dims()),
                format!("[{batch}]"),
            ));
        }
        self.check_labels(labels)
    }

    fn check_labels(&self, labels: &Tensor<1, Int>) -> Result<(), InputError> {
        check_range("labels", &labels.clone().unsqueeze_dim(1), self.no_class() + 1)
    }

    /// The logits of every code of a picture.
    ///
    /// # Shapes
    ///
    /// - `codes`: `[batch, N]`, N at most `grid_size^2`; the last one is not read
    /// - `labels`: `[batch]`, in `0 ..= num_classes`, the last for "no class"
    /// - output: `[batch, N, vocab_size]`, position j for code j
    ///
    /// # Panics
    ///
    /// In debug builds for what [`check_inputs`](Self::check_inputs) refuses, otherwise when the
    /// shapes do not fit.
    pub fn forward(&self, codes: Tensor<2, Int>, labels: Tensor<1, Int>) -> Tensor<3> {
        let [_, count] = codes.dims();
        assert!(
            (1..=self.max_codes()).contains(&count),
            "forward: `codes` {:?} has {count} codes a picture, the grid 1 to {}",
            codes.dims(),
            self.max_codes()
        );
        if cfg!(debug_assertions) {
            self.check_inputs(&codes, &labels).unwrap_or_else(|error| panic!("forward: {error}"));
        }
        let before = (count > 1).then(|| codes.narrow(1, 0, count - 1));
        let (x, ids) = self.embed(Some(labels), before);
        self.run(x, ids, |attention, x, memory| attention.forward(x, memory))
    }

    /// Mean cross entropy in nats of the codes, position j for code j.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[batch, N, vocab_size]`
    /// - `codes`: `[batch, N]`
    /// - output: `[1]`, in at least float32
    ///
    /// # Errors
    ///
    /// [`InputError`] for an empty picture or a code out of range.
    ///
    /// # Panics
    ///
    /// When the codes' batch and number are not those of the logits.
    pub fn loss(&self, logits: Tensor<3>, codes: Tensor<2, Int>) -> Result<Tensor<1>, InputError> {
        check_range("codes", &codes, self.vocab_size())?;
        let targets = Targets::aligned(&codes.to_data(), -1, self.vocab_size(), &logits.device())?;
        Ok(targets.cross_entropy(logits))
    }

    /// Labels with a share of them replaced by "no class", which guidance needs in training:
    /// those whose number in `uniform` (drawn in [0, 1)) is below `share`, 0.1 in the paper.
    ///
    /// # Panics
    ///
    /// When the shapes differ.
    pub fn drop_classes(&self, labels: Tensor<1, Int>, uniform: Tensor<1>, share: f64) -> Tensor<1, Int> {
        assert!(
            labels.dims() == uniform.dims(),
            "drop_classes: `uniform` {:?} is not of the shape of `labels` {:?}",
            uniform.dims(),
            labels.dims()
        );
        labels.mask_fill(uniform.lower_elem(share), self.no_class() as i64)
    }

    /// The state before the class.
    pub fn empty_state(&self, batch: usize, device: &Device) -> MoveImageState {
        let empty = |block: &MoveImageBlock| MoveCache::Full(block.attention.empty_cache(batch, device));
        ModelState { layers: self.layers.iter().map(empty).collect() }
    }

    /// Checks that a state fits this model and `batch`.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the part, its shape and the shape it needs.
    pub fn check_state(&self, state: &MoveImageState, batch: usize) -> Result<(), InputError> {
        check_caches(state, self.layers.len(), batch, |layer, device| {
            MoveCache::Full(self.layers[layer].attention.empty_cache(batch, device))
        })
    }

    /// Begins pictures of the classes `labels` `[batch]`: the logits `[batch, vocab_size]` of the
    /// first code, and the state after the class.
    ///
    /// # Panics
    ///
    /// In debug builds for a label out of range.
    pub fn begin(&self, labels: Tensor<1, Int>) -> (Tensor<2>, MoveImageState) {
        if cfg!(debug_assertions) {
            self.check_labels(&labels).unwrap_or_else(|error| panic!("begin: {error}"));
        }
        let state = self.empty_state(labels.dims()[0], &labels.device());
        let (x, ids) = self.embed(Some(labels), None);
        let (logits, state) = self.advance(x, ids, state);
        (logits.squeeze_dim(1), state)
    }

    /// Continues by one code: `code` `[batch]` to the logits `[batch, vocab_size]` of the next.
    ///
    /// # Panics
    ///
    /// When the state does not fit, has not seen the class, or the picture is full; in debug builds
    /// for a code out of range.
    pub fn step(&self, code: Tensor<1, Int>, state: MoveImageState) -> (Tensor<2>, MoveImageState) {
        let (logits, state) = self.prefill(code.unsqueeze_dim(1), state);
        (logits.squeeze_dim(1), state)
    }

    /// Continues by several codes `[batch, count]`: the logits `[batch, count, vocab_size]` of the
    /// codes after each.
    ///
    /// # Panics
    ///
    /// As [`step`](Self::step).
    pub fn prefill(&self, codes: Tensor<2, Int>, state: MoveImageState) -> (Tensor<3>, MoveImageState) {
        let [batch, count] = codes.dims();
        self.check_state(&state, batch).unwrap_or_else(|error| panic!("prefill: {error}"));
        let position = state.layers[0].position();
        assert!(position > 0, "prefill: the state has not seen the class; `begin` gives one that has");
        let most = self.max_codes();
        assert!(
            position + count <= most,
            "prefill: {count} codes after {} leave none to predict: a picture has {most}",
            position - 1
        );
        if cfg!(debug_assertions) {
            check_range("codes", &codes, self.vocab_size())
                .unwrap_or_else(|error| panic!("prefill: {error}"));
        }
        let (x, ids) = self.embed(None, Some(codes));
        self.advance(x, ids, state)
    }

    /// The gates of every layer, as
    /// [`MoveTextModel::gate_values`](super::MoveTextModel::gate_values).
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn gate_values(&self, codes: Tensor<2, Int>, labels: Tensor<1, Int>) -> Vec<Option<Tensor<4>>> {
        let [_, count] = codes.dims();
        let before = (count > 1).then(|| codes.narrow(1, 0, count - 1));
        let (x, ids) = self.embed(Some(labels), before);
        let mut gates = Vec::new();
        self.run(x, ids, |attention, x, memory| {
            gates.push(attention.mixer.as_ref().map(|mixer| mixer.gates(x.clone())));
            attention.forward(x, memory)
        });
        gates
    }

    /// Embeddings `[batch, time, d]` and rows of the memory `[batch, time]` of a class and codes.
    fn embed(
        &self,
        labels: Option<Tensor<1, Int>>,
        codes: Option<Tensor<2, Int>>,
    ) -> (Tensor<3>, Tensor<2, Int>) {
        let class = labels.map(|labels| {
            let labels = labels.unsqueeze_dim::<2>(1);
            let rows = labels.clone().add_scalar(self.vocab_size() as i64);
            (self.cls_embedding.forward(labels), rows)
        });
        let codes = codes.map(|codes| (self.tok_embeddings.forward(codes.clone()), codes));
        let (x, ids): (Vec<_>, Vec<_>) = class.into_iter().chain(codes).unzip();
        (self.dropout.forward(Tensor::cat(x, 1)), Tensor::cat(ids, 1))
    }

    fn advance(
        &self,
        x: Tensor<3>,
        ids: Tensor<2, Int>,
        state: MoveImageState,
    ) -> (Tensor<3>, MoveImageState) {
        let mut old = state.layers.into_iter();
        let mut layers = Vec::with_capacity(old.len());
        let logits = self.run(x, ids, |attention, x, memory| {
            let Some(MoveCache::Full(cache)) = old.next() else { unreachable!("the state was checked") };
            let (y, cache) = attention.prefill(x, memory, cache);
            layers.push(MoveCache::Full(cache));
            y
        });
        (logits, ModelState { layers })
    }

    /// Logits; `attend` runs the attention of a layer on its normalised input and its memory.
    fn run(
        &self,
        mut x: Tensor<3>,
        ids: Tensor<2, Int>,
        mut attend: impl FnMut(&MoveImageAttention, Tensor<3>, Option<Tensor<5>>) -> Tensor<3>,
    ) -> Tensor<3> {
        let memory = ValueEmbeddings::look_up(&self.value_embeds, &ids, self.layers.len());
        for (block, memory) in self.layers.iter().zip(memory) {
            let normalised = block.attention_norm.forward(x.clone());
            x = x + block.dropout.forward(attend(&block.attention, normalised, memory));
            let normalised = block.ffn_norm.forward(x.clone());
            x = x + block.dropout.forward(block.feed_forward.forward(normalised));
        }
        self.output.forward(self.norm.forward(x))
    }
}

/// Labels as a tensor `[batch]`.
pub(super) fn label_tensor(labels: &[usize], device: &Device) -> Tensor<1, Int> {
    let labels: Vec<i64> = labels.iter().map(|&label| label as i64).collect();
    let count = labels.len();
    Tensor::from_data(TensorData::new(labels, [count]), device)
}
