//! The decoder and its loss.

use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::{Int, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::attention::KvCache;
use gatekit_core::checkpoint::{NamedTensors, TensorError, load_tensors};
use gatekit_core::cross_entropy::{check_labels, cross_entropies};
use gatekit_core::gate::{GateActivation, output_gate};
use gatekit_core::norm::RmsNorm;

use super::attention::InjectedAttention;
use super::bind::BindNetwork;
use super::config::ImageBindLlmConfig;
use super::embedder::Embedder;
use super::lora::LoraLinear;

/// A language model whose last layers get a vector of a joint embedding space, added to the attention output of every
/// token and scaled by a gate a head that starts at 0: see the [module](super).
#[derive(Module, Debug)]
pub struct ImageBindLlm {
    /// From the joint space to the language model's width.
    pub bind: BindNetwork,
    /// What is added to the visual vector in each injected layer, `[query_layers, D]`, starts normal(0, 1).
    pub prefix_query: Embedding,
    /// The language model.
    pub llama: Llama,
}

/// A decoder: embeddings, blocks, a norm, and scores.
#[derive(Module, Debug)]
pub struct Llama {
    /// `[vocab, D]`.
    pub tok_embeddings: Embedding,
    /// The blocks, first to last.
    pub layers: Vec<Block>,
    /// The last norm.
    pub norm: RmsNorm,
    /// `[D, vocab]`, without a bias.
    pub output: Linear,
}

/// `h = x + attention(RMSNorm(x))`, `x = h + feed_forward(RMSNorm(h))`.
#[derive(Module, Debug)]
pub struct Block {
    /// Before the attention.
    pub attention_norm: RmsNorm,
    /// Attention, with the injected value.
    pub attention: InjectedAttention,
    /// Before the feed-forward layer.
    pub ffn_norm: RmsNorm,
    /// The feed-forward layer.
    pub feed_forward: FeedForward,
}

impl Block {
    fn forward(
        &self,
        x: Tensor<3>,
        injected: Option<&Tensor<4>>,
        cache: Option<KvCache>,
    ) -> (Tensor<3>, KvCache) {
        let (attended, cache) =
            self.attention.attend(self.attention_norm.forward(x.clone()), injected, cache);
        let h = x + attended;
        (h.clone() + self.feed_forward.forward(self.ffn_norm.forward(h)), cache)
    }
}

/// `W_2 (silu(W_1 n) * W_3 n)`, each map with its deltas if it has any.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// The gate.
    pub w1: LoraLinear,
    /// The way back.
    pub w2: LoraLinear,
    /// What is gated.
    pub w3: LoraLinear,
}

impl FeedForward {
    /// `[B, T, D]` to `[B, T, D]`.
    ///
    /// # Panics
    ///
    /// For another width than D.
    pub fn forward(&self, n: Tensor<3>) -> Tensor<3> {
        let logits = self.w1.forward(n.clone());
        self.w2.forward(output_gate(self.w3.forward(n), logits, GateActivation::Swish))
    }
}

impl ImageBindLlm {
    /// Joint embeddings `[B, M]` to visual vectors `[B, 1, D]`, once a conversation.
    ///
    /// # Errors
    ///
    /// [`InputError`] for features of another width.
    pub fn visual(&self, feats: Tensor<2>) -> Result<Tensor<3>, InputError> {
        self.bind.forward(feats)
    }

    /// The joint embeddings `[B, M]` of a batch, from a frozen encoder: constant for the gradient.
    ///
    /// # Errors
    ///
    /// [`InputError`] when the encoder's space is not the bind network's, or an embedding is not finite.
    pub fn embed<E: Embedder + ?Sized>(
        &self,
        embedder: &E,
        input: &E::Input,
    ) -> Result<Tensor<2>, InputError> {
        let [need, _] = self.bind.proj.weight.shape().dims();
        let embedding = embedder.embed(input).without_autodiff();
        if embedder.dim() != need || embedding.dims()[1] != need {
            let got = format!("{} channels, shape {:?}", embedder.dim(), embedding.dims());
            return Err(InputError::new("feats", got, format!("[batch, {need}]")));
        }
        if !embedding.clone().is_finite().all().into_scalar::<bool>() {
            return Err(InputError::new("feats", "NaN or infinity", "finite embeddings"));
        }
        Ok(embedding)
    }

    /// Scores of the next token, `[B, T, vocab]`, for `tokens` `[B, T]` with positions from 0 and a visual vector
    /// `[B, 1, D]` a row ([`visual`](Self::visual)). Without one it is the language model alone.
    ///
    /// # Errors
    ///
    /// [`InputError`] for tokens outside the vocabulary or none at all, a visual of another shape than `[B, 1, D]`.
    pub fn forward(
        &self,
        tokens: Tensor<2, Int>,
        visual: Option<Tensor<3>>,
    ) -> Result<Tensor<3>, InputError> {
        self.check_tokens(&tokens)?;
        let injected = self.injections(visual, tokens.dims()[0])?;
        let (hidden, _) = self.hidden(tokens, &injected, None);
        Ok(self.scores(hidden))
    }

    /// [`caption_loss`] of the scores, `[1]`.
    ///
    /// # Errors
    ///
    /// [`InputError`] names a label outside the vocabulary, or labels of another shape than the scores.
    pub fn loss(&self, logits: Tensor<3>, labels: &Tensor<2, Int>) -> Result<Tensor<1>, InputError> {
        caption_loss(logits, labels)
    }

    /// `|tanh(gate)|` of every head, by injected layer, first to last.
    pub fn gates(&self) -> Vec<Vec<f64>> {
        let gates = self.llama.layers.iter().filter_map(|layer| layer.attention.gate.as_ref());
        gates.map(|gate| gate.gate.val().tanh().abs().into_data().iter::<f64>().collect()).collect()
    }

    /// The model with biases (if `bias`) and low-rank deltas of rank `rank` (unless 0) on every projection of the
    /// language model that has none: fine-tuning goes on from a pre-trained model so, with the same function at first.
    pub fn tuned(mut self, bias: bool, rank: usize) -> Self {
        let device = self.llama.output.weight.val().device();
        let tune = |linear: LoraLinear, bias: bool| linear.tuned(bias, rank, &device);
        let layers = self.llama.layers.into_iter().map(|mut layer| {
            let attention = &mut layer.attention;
            attention.wq = tune(attention.wq.clone(), bias);
            attention.wk = tune(attention.wk.clone(), false);
            attention.wv = tune(attention.wv.clone(), false);
            attention.wo = tune(attention.wo.clone(), bias);
            let maps = &mut layer.feed_forward;
            maps.w1 = tune(maps.w1.clone(), bias);
            maps.w2 = tune(maps.w2.clone(), bias);
            maps.w3 = tune(maps.w3.clone(), bias);
            layer
        });
        self.llama.layers = layers.collect();
        self
    }

    /// The model with the tensors of a checkpoint under their published names, such as
    /// [`merge_published`](super::merge_published) makes.
    ///
    /// # Errors
    ///
    /// [`TensorError`] names the first tensor that is missing, unexpected or of another shape.
    pub fn load_published(
        self,
        config: &ImageBindLlmConfig,
        tensors: NamedTensors,
    ) -> Result<Self, TensorError> {
        let tensors = config.tensor_layout().to_module(&self, tensors)?;
        load_tensors(self, tensors)
    }

    /// Tokens that are known, at least one a row.
    pub(super) fn check_tokens(&self, tokens: &Tensor<2, Int>) -> Result<(), InputError> {
        let ([batch, time], vocab) = (tokens.dims(), self.vocab());
        if batch == 0 || time == 0 {
            return Err(InputError::new(
                "tokens",
                format!("shape {:?}", tokens.dims()),
                "at least one token",
            ));
        }
        let unknown = |id: &i64| usize::try_from(*id).map_or(true, |id| id >= vocab);
        let ids: Vec<i64> = tokens.to_data().iter::<i64>().collect();
        match ids.iter().position(unknown) {
            None => Ok(()),
            Some(place) => {
                let got = format!("{} at [{}, {}]", ids[place], place / time, place % time);
                Err(InputError::new("tokens", got, format!("0 .. {vocab}")))
            }
        }
    }

    /// Tokens it knows.
    pub fn vocab(&self) -> usize {
        self.llama.output.weight.shape().dims::<2>()[1]
    }

    /// What each layer adds behind its heads.
    pub(super) fn injections(
        &self,
        visual: Option<Tensor<3>>,
        batch: usize,
    ) -> Result<Vec<Option<Tensor<4>>>, InputError> {
        let Some(visual) = visual else { return Ok(vec![None; self.llama.layers.len()]) };
        let [queries, dim] = self.prefix_query.weight.shape().dims();
        if visual.dims() != [batch, 1, dim] {
            let got = format!("shape {:?}", visual.dims());
            return Err(InputError::new("visual", got, format!("[{batch}, 1, {dim}]")));
        }
        let prefix = self.prefix_query.weight.val();
        let first = self.llama.layers.len() - queries;
        let injection = |(layer, block): (usize, &Block)| {
            let Some(query) = layer.checked_sub(first) else { return Ok(None) };
            let prefix = prefix.clone().narrow(0, query, 1).reshape([1, 1, dim]);
            block.attention.injection(visual.clone() + prefix, batch).map(Some)
        };
        self.llama.layers.iter().enumerate().map(injection).collect()
    }

    /// The blocks' result `[B, T, D]` for tokens that follow those of the caches.
    pub(super) fn hidden(
        &self,
        tokens: Tensor<2, Int>,
        injected: &[Option<Tensor<4>>],
        caches: Option<Vec<KvCache>>,
    ) -> (Tensor<3>, Vec<KvCache>) {
        let caches: Vec<Option<KvCache>> = match caches {
            Some(caches) => caches.into_iter().map(Some).collect(),
            None => vec![None; self.llama.layers.len()],
        };
        let mut h = self.llama.tok_embeddings.forward(tokens);
        let mut kept = Vec::with_capacity(caches.len());
        for ((layer, injected), cache) in self.llama.layers.iter().zip(injected).zip(caches) {
            let (next, cache) = layer.forward(h, injected.as_ref(), cache);
            h = next;
            kept.push(cache);
        }
        (h, kept)
    }

    pub(super) fn scores(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.llama.output.forward(self.llama.norm.forward(hidden))
    }
}

/// The mean cross entropy in nats, `[1]`, of position t against label t + 1, over the labels that are not 0 (padding,
/// and a prompt that is not to be learned); 0 when there are none.
///
/// `logits` `[B, T, vocab]`, `labels` `[B, T]`; in at least float32.
///
/// # Errors
///
/// [`InputError`] names a label outside the vocabulary, or labels of another shape than the scores.
pub fn caption_loss(logits: Tensor<3>, labels: &Tensor<2, Int>) -> Result<Tensor<1>, InputError> {
    let [batch, time, vocab] = logits.dims();
    if labels.dims() != [batch, time] {
        let got = format!("shape {:?}", labels.dims());
        return Err(InputError::new("labels", got, format!("[{batch}, {time}]")));
    }
    let values = check_labels(&labels.clone().reshape([batch * time]), batch * time, vocab)?;
    let counted: Vec<f64> = (values.chunks(time.max(1)))
        .flat_map(|row| row.iter().skip(1).map(|label| f64::from(u8::from(*label != 0))))
        .collect();
    let count: f64 = counted.iter().sum();
    if count == 0.0 {
        return Ok(logits.sum().mul_scalar(0.0));
    }
    let rows = batch * (time - 1);
    let losses = cross_entropies(
        logits.narrow(1, 0, time - 1).reshape([rows, vocab]),
        labels.clone().narrow(1, 1, time - 1).reshape([rows]),
    );
    let counted =
        Tensor::<1>::from_data(TensorData::new(counted, [rows]), (&losses.device(), losses.dtype()));
    Ok((losses * counted).sum().div_scalar(count))
}
