//! The stack that every language model here shares: pre-norm blocks around a token mixer.
//!
//! ```text
//! x = embeddings[ids]
//! x = x + attn(RMSNorm(x));   x = x + SwiGLU(RMSNorm(x))      (per block)
//! logits = W_head RMSNorm(x)
//! ```
//!
//! The mixer and the feed-forward layer are type parameters. Module and field names are those of
//! flash-linear-attention's checkpoints (`model.layers.0.attn_norm.weight`, ...), so these load
//! without a name map.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::{Module, ModuleDisplay, Param};
use burn::nn::{Embedding, Linear};
use burn::tensor::module::linear;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::decay::lower_bounds;
use gatekit_core::feed_forward::{SwiGlu, SwiGluConfig};
use gatekit_core::norm::{RmsNorm, RmsNormConfig};
use gatekit_core::sequence::Packing;
use gatekit_core::{ConfigError, InputError, ModuleConfig, init};

use crate::lm::{CausalLm, StreamState, StreamingLm};
use gatekit_core::checkpoint::{CheckpointError, NamedTensors, SafetensorsFile, TensorError, TensorProblem};

/// More layers than any model has: a larger number in a configuration is a damaged file.
pub(crate) const MAX_LAYERS: usize = 10_000;

/// What a layer is given besides its input.
#[derive(Debug, Clone, Default)]
pub struct MixerContext<'a> {
    /// How to remove padded tokens, `None` without padding and when streaming.
    pub packing: Option<&'a Packing>,
    /// This layer's floor of the forget gates, `[D']`; `None` in the first layer, and in models
    /// without floors. See [`Backbone::lower_bounds`].
    pub lower_bound: Option<Tensor<1>>,
}

/// A layer that treats every position by itself: what stands after the mixer in a block.
pub trait FeedForward: Module + ModuleDisplay {
    /// `[.., hidden_size]` to `[.., hidden_size]`.
    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D>;
}

impl FeedForward for SwiGlu {
    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        Self::forward(self, x)
    }
}

/// A layer that moves information between positions, causally.
pub trait TokenMixer: Module + ModuleDisplay {
    /// What the layer remembers of the tokens so far.
    type State: MixerState;

    /// A whole batch.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, time, hidden_size]`
    /// - `context.packing`: from a mask `[batch, time]`; padded tokens are removed, the output is 0
    ///   there
    /// - output: `[batch, time, hidden_size]`
    fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3>;

    /// Continues by several tokens: `x` and the output are `[batch, time, hidden_size]`.
    fn prefill(
        &self,
        x: Tensor<3>,
        state: Self::State,
        context: &MixerContext<'_>,
    ) -> (Tensor<3>, Self::State);

    /// Continues by one token: `x` and the output are `[batch, hidden_size]`.
    fn step(&self, x: Tensor<2>, state: Self::State, context: &MixerContext<'_>) -> (Tensor<2>, Self::State);

    /// The state before the first token.
    fn empty_state(&self, batch: usize, device: &Device) -> Self::State;

    /// Checks that a state fits this layer and `batch`.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the part, its shape and the shape it needs.
    fn check_state(&self, state: &Self::State, batch: usize) -> Result<(), InputError>;
}

/// The streaming state of one [`TokenMixer`].
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

/// Sizes of a [`CausalModel`], whatever its mixer.
#[derive(Debug, Clone)]
pub struct BackboneSize {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Width of the feed-forward layers; `None`: see [`Self::hidden_ratio`].
    pub intermediate_size: Option<usize>,
    /// Without an intermediate size: `2/3 * hidden_ratio * hidden_size`, truncated, then rounded
    /// up to a multiple of 256.
    pub hidden_ratio: f64,
    /// Added to the mean square in every RMSNorm of the stack.
    pub norm_eps: f64,
    /// The head uses the embeddings' weight and has no parameter of its own.
    pub tie_word_embeddings: bool,
}

impl BackboneSize {
    fn feed_forward_size(&self) -> Result<usize, ConfigError> {
        if let Some(size) = self.intermediate_size {
            return match size {
                0 => Err(ConfigError::new("intermediate_size", 0, "at least 1, or null")),
                size => Ok(size),
            };
        }
        if !(self.hidden_ratio.is_finite() && self.hidden_ratio > 0.0) {
            return Err(ConfigError::new("hidden_ratio", self.hidden_ratio, "a positive number"));
        }
        let size = (self.hidden_size as f64 * self.hidden_ratio * 2.0 / 3.0) as usize;
        size.max(1)
            .checked_next_multiple_of(256)
            .ok_or_else(|| ConfigError::new("hidden_ratio", self.hidden_ratio, "a smaller ratio"))
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
        ] {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        if self.num_hidden_layers > MAX_LAYERS {
            return Err(ConfigError::new(
                "num_hidden_layers",
                self.num_hidden_layers,
                format!("at most {MAX_LAYERS}"),
            ));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(ConfigError::new("norm_eps", self.norm_eps, "a positive number"));
        }
        Ok(())
    }
}

/// One pre-norm block: `x += attn(RMSNorm(x)); x += mlp(RMSNorm(x))`.
#[derive(Module, Debug)]
pub struct Block<M, F = SwiGlu> {
    /// Norm before the mixer.
    pub attn_norm: RmsNorm,
    /// The token mixer, called `attn` in the published checkpoints whatever it is.
    pub attn: M,
    /// Norm before the feed-forward layer.
    pub mlp_norm: RmsNorm,
    /// The feed-forward layer.
    pub mlp: F,
}

impl<M: TokenMixer, F: FeedForward> Block<M, F> {
    /// The block for a whole batch `[batch, time, hidden_size]`.
    pub fn forward(&self, x: Tensor<3>, context: &MixerContext<'_>) -> Tensor<3> {
        let mixed = self.attn.forward(self.attn_norm.forward(x.clone()), context);
        self.feed_forward(x + mixed)
    }

    fn prefill(&self, x: Tensor<3>, state: M::State, context: &MixerContext<'_>) -> (Tensor<3>, M::State) {
        let (mixed, state) = self.attn.prefill(self.attn_norm.forward(x.clone()), state, context);
        (self.feed_forward(x + mixed), state)
    }

    fn step(&self, x: Tensor<2>, state: M::State, context: &MixerContext<'_>) -> (Tensor<2>, M::State) {
        let (mixed, state) = self.attn.step(self.attn_norm.forward(x.clone()), state, context);
        (self.feed_forward(x + mixed), state)
    }

    fn feed_forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x.clone() + self.mlp.forward(self.mlp_norm.forward(x))
    }
}

/// Embeddings, blocks and the final norm: everything but the head.
#[derive(Module, Debug)]
pub struct Backbone<M, F = SwiGlu> {
    /// Token embeddings `[vocab_size, hidden_size]`.
    pub embeddings: Embedding,
    /// Raw floors of the forget gates, one row a layer, `[num_hidden_layers, D']`;
    /// [`lower_bounds`](gatekit_core::decay::lower_bounds()) makes the floors of them. `None` in models without.
    pub lower_bounds: Option<Param<Tensor<2>>>,
    /// The blocks, first to last.
    pub layers: Vec<Block<M, F>>,
    /// The norm after the last block.
    pub norm: RmsNorm,
}

/// A language model: [`Backbone`] and head.
#[derive(Module, Debug)]
pub struct CausalModel<M, F = SwiGlu> {
    /// Everything but the head.
    pub model: Backbone<M, F>,
    /// The head; `None` when it is tied to the embeddings.
    pub lm_head: Option<Linear>,
}

impl<M: TokenMixer> CausalModel<M> {
    /// Builds the stack; `mixer` makes the layer of the given index.
    ///
    /// Weights of linear layers and embeddings start as normal(0, 0.02), norms at 1.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a size of 0, an epsilon that is not positive, or from the mixer.
    pub fn try_new(
        size: &BackboneSize,
        device: &Device,
        mixer: impl FnMut(usize) -> Result<M, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let inner = size.feed_forward_size()?;
        let feed_forward = |_| SwiGluConfig::new(size.hidden_size, inner).try_init(device);
        Self::try_with_feed_forward(size, device, mixer, feed_forward)
    }
}

impl<M: TokenMixer, F: FeedForward> CausalModel<M, F> {
    /// Builds the stack; `mixer` and `feed_forward` make the layers of the given index. The sizes
    /// of the feed-forward layers in `size` do not count here.
    ///
    /// # Errors
    ///
    /// As [`try_new`](Self::try_new).
    pub fn try_with_feed_forward(
        size: &BackboneSize,
        device: &Device,
        mut mixer: impl FnMut(usize) -> Result<M, ConfigError>,
        mut feed_forward: impl FnMut(usize) -> Result<F, ConfigError>,
    ) -> Result<Self, ConfigError> {
        size.check()?;
        let norm = || RmsNormConfig::new(size.hidden_size).with_eps(size.norm_eps).try_init(device);
        let block = |index| {
            Ok(Block {
                attn_norm: norm()?,
                attn: mixer(index)?,
                mlp_norm: norm()?,
                mlp: feed_forward(index)?,
            })
        };
        let layers = (0..size.num_hidden_layers).map(block).collect::<Result<_, ConfigError>>()?;
        let embeddings = init::embedding(size.vocab_size, size.hidden_size, device);
        let lm_head = (!size.tie_word_embeddings)
            .then(|| init::linear(size.hidden_size, size.vocab_size, false, device));
        let model = Backbone { embeddings, lower_bounds: None, layers, norm: norm()? };
        Ok(Self { model, lm_head })
    }

    /// Token embeddings of `input_ids`, `[batch, time, hidden_size]`.
    ///
    /// # Panics
    ///
    /// When there is no token, and in debug builds for a token outside the vocabulary.
    pub fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        let dims = input_ids.dims();
        assert!(!dims.contains(&0), "`input_ids` holds no token, shape {dims:?}");
        if cfg!(debug_assertions) {
            self.check_ids(&input_ids).unwrap_or_else(|error| panic!("{error}"));
        }
        self.model.embeddings.forward(input_ids)
    }

    /// What every layer is given besides its input, first to last.
    pub fn contexts<'a>(&self, packing: Option<&'a Packing>) -> Vec<MixerContext<'a>> {
        let floors = self.model.lower_bounds.as_ref().map(|raw| lower_bounds(raw.val()));
        (0..self.model.layers.len())
            .map(|index| MixerContext {
                packing,
                // The first layer's floor is 0, which is none.
                lower_bound: (floors.as_ref().filter(|_| index > 0))
                    .map(|floors| floors.clone().narrow(0, index, 1).squeeze_dim::<1>(0)),
            })
            .collect()
    }

    /// The final norm and the head.
    pub(crate) fn logits<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let x = self.model.norm.forward(x);
        match &self.lm_head {
            Some(head) => head.forward(x),
            None => linear(x, self.model.embeddings.weight.val().transpose(), None),
        }
    }
}

impl<M: TokenMixer, F: FeedForward> CausalLm for CausalModel<M, F> {
    fn forward(&self, input_ids: Tensor<2, Int>, attention_mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let packing = attention_mask.and_then(|mask| padding(&mask, input_ids.dims()));
        let x = self.embed(input_ids);
        let contexts = self.contexts(packing.as_ref());
        let layers = self.model.layers.iter().zip(&contexts);
        self.logits(layers.fold(x, |x, (block, context)| block.forward(x, context)))
    }

    fn vocab_size(&self) -> usize {
        self.model.embeddings.weight.lazy_shape()[0]
    }
}

/// How to remove the padding that `mask` describes; `None` without any.
pub(crate) fn padding(mask: &Tensor<2, Bool>, [batch, time]: [usize; 2]) -> Option<Packing> {
    let dims = mask.dims();
    assert!(
        dims == [batch, time],
        "forward: `attention_mask` has [batch, time] = {dims:?}, `input_ids` [{batch}, {time}]"
    );
    let packing = Packing::from_mask(mask).unwrap_or_else(|error| panic!("forward: {error}"));
    (packing.boundaries().time() < batch * time).then_some(packing)
}

impl<M: TokenMixer, F: FeedForward> StreamingLm for CausalModel<M, F> {
    type State = ModelState<M::State>;

    fn empty_state(&self, batch: usize, device: &Device) -> Self::State {
        ModelState {
            layers: self.model.layers.iter().map(|block| block.attn.empty_state(batch, device)).collect(),
        }
    }

    fn check_state(&self, state: &Self::State, batch: usize) -> Result<(), InputError> {
        let need = self.model.layers.len();
        if state.layers.len() != need {
            let got = format!("{} layers", state.layers.len());
            return Err(InputError::new("state", got, format!("{need} layers")));
        }
        for (index, (block, layer)) in self.model.layers.iter().zip(&state.layers).enumerate() {
            block.attn.check_state(layer, batch).map_err(|error| {
                InputError::new(format!("state.layers.{index}.{}", error.field), error.got, error.need)
            })?;
        }
        Ok(())
    }

    fn prefill(&self, input_ids: Tensor<2, Int>, state: Self::State) -> (Tensor<3>, Self::State) {
        let x = self.embed(input_ids);
        let (x, state) = self.stream(x, state, Block::prefill);
        (self.logits(x), state)
    }

    fn step(&self, token: Tensor<1, Int>, state: Self::State) -> (Tensor<2>, Self::State) {
        let x = self.embed(token.unsqueeze_dim(1)).squeeze_dim::<2>(1);
        let (x, state) = self.stream(x, state, Block::step);
        (self.logits(x), state)
    }
}

impl<M: TokenMixer, F: FeedForward> CausalModel<M, F> {
    /// Runs the blocks one after the other, each with its part of the state.
    fn stream<const D: usize>(
        &self,
        mut x: Tensor<D>,
        state: ModelState<M::State>,
        advance: impl Fn(&Block<M, F>, Tensor<D>, M::State, &MixerContext<'_>) -> (Tensor<D>, M::State),
    ) -> (Tensor<D>, ModelState<M::State>) {
        assert!(
            state.layers.len() == self.model.layers.len(),
            "`state` has {} layers, the model {}",
            state.layers.len(),
            self.model.layers.len()
        );
        let batch = x.dims()[0];
        let mut layers = Vec::with_capacity(state.layers.len());
        let blocks = self.model.layers.iter().zip(self.contexts(None));
        for (index, ((block, context), layer)) in blocks.zip(state.layers).enumerate() {
            if let Err(error) = block.attn.check_state(&layer, batch) {
                panic!("`state` of layer {index}: {error}");
            }
            let (next, layer) = advance(block, x, layer, &context);
            x = next;
            layers.push(layer);
        }
        (x, ModelState { layers })
    }
}

/// The streaming state of a [`CausalModel`]: one state a layer.
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
