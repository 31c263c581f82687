//! The streaming state of any model.

use std::path::Path;

use burn::tensor::Device;
use gatekit_core::InputError;
use gatekit_core::checkpoint::{CheckpointError, SafetensorsFile};

use crate::affine_scaled::AffineScaledState;
use crate::backbone::{MixerState, ModelState};
use crate::deepseek_v3::DeepseekV3State;
use crate::gated_associative_memory::GamState;
use crate::gla::GlaState;
use crate::hybrid_linear_attention::HybridState;
use crate::kimi_linear::KimiLinearState;
use crate::lm::StreamState;
use crate::mamba::MambaModelState;
use crate::mixture_of_value_embeddings::MoveTextState;
use crate::qwen3_next::Qwen3NextState;
use crate::softmax::SoftmaxState;
use crate::transnormer::TransNormerState;

/// A state that [`AutoState`] has a variant for.
pub(super) trait Held: StreamState {
    /// Name of the mixer in saved states.
    const MIXER: &'static str;

    /// Into its variant.
    fn hold(self) -> AutoState;

    /// Out of its variant.
    fn taken(state: AutoState) -> Result<Self, InputError>;

    /// What is in its variant.
    fn seen(state: &AutoState) -> Result<&Self, InputError>;
}

/// The state that a mixer's name in a file stands for, and its loader.
type Loader = fn(&Path, &Device) -> Result<AutoState, CheckpointError>;

macro_rules! states {
    ($($(#[$attribute:meta])* $variant:ident($state:ty),)+) => {
        /// The streaming state of an [`AutoModel`](super::AutoModel): one variant a kind of state,
        /// which models of one mixer share.
        #[derive(Debug, Clone)]
        pub enum AutoState {
            $($(#[$attribute])* $variant($state),)+
        }

        const LOADERS: &[(&str, Loader)] = &[
            $((<$state as Held>::MIXER, |path, device| <$state>::load(path, device).map(Held::hold)),)+
        ];

        impl AutoState {
            /// Name of the mixer whose state this is, as in saved states.
            pub fn mixer(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => <$state as Held>::MIXER,)+
                }
            }
        }

        impl StreamState for AutoState {
            fn bytes(&self) -> usize {
                match self {
                    $(Self::$variant(state) => state.bytes(),)+
                }
            }

            fn to_device(self, device: &Device) -> Self {
                match self {
                    $(Self::$variant(state) => Self::$variant(state.to_device(device)),)+
                }
            }

            fn save(&self, path: impl AsRef<Path>) -> Result<(), CheckpointError> {
                match self {
                    $(Self::$variant(state) => state.save(path),)+
                }
            }

            /// Reads a state of any mixer; the file says of which.
            fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self, CheckpointError> {
                let path = path.as_ref();
                let file = SafetensorsFile::open(path)?;
                let mixer = file.metadata("mixer").unwrap_or("nothing");
                match LOADERS.iter().find(|(known, _)| *known == mixer) {
                    Some((_, load)) => load(path, device),
                    None => {
                        let known: Vec<&str> = LOADERS.iter().map(|(known, _)| *known).collect();
                        let reason = format!("`mixer` is {mixer}, need one of {}", known.join(", "));
                        Err(CheckpointError::malformed(path, reason))
                    }
                }
            }
        }

        $(impl Held for $state {
            const MIXER: &'static str = mixer::<$state>();

            fn hold(self) -> AutoState {
                AutoState::$variant(self)
            }

            fn taken(state: AutoState) -> Result<Self, InputError> {
                match state {
                    AutoState::$variant(state) => Ok(state),
                    other => Err(other_mixer(other.mixer(), Self::MIXER)),
                }
            }

            fn seen(state: &AutoState) -> Result<&Self, InputError> {
                match state {
                    AutoState::$variant(state) => Ok(state),
                    other => Err(other_mixer(other.mixer(), Self::MIXER)),
                }
            }
        })+
    };
}

states! {
    /// Affine-scaled attention: the keys and values of all tokens, and how many there were.
    AffineScaled(AffineScaledState),
    /// DeepSeek-V3: the latents of all tokens.
    LatentAttention(DeepseekV3State),
    /// Gated associative memory: the last inputs of the convolutions.
    Gam(GamState),
    /// Gated linear attention: a matrix a head.
    Gla(GlaState),
    /// Hybrid stacks: a matrix a head, or keys and values.
    Hybrid(HybridState),
    /// Kimi Linear: a matrix a head, or latents.
    KimiLinear(KimiLinearState),
    /// Mamba: a vector a channel.
    Mamba(MambaModelState),
    /// Mixture of value embeddings: keys, values and what the memory adds.
    Move(MoveTextState),
    /// Qwen3-Next: a matrix a head, or keys and values.
    Qwen3Next(Qwen3NextState),
    /// Softmax attention: the keys and values of all tokens.
    Softmax(SoftmaxState),
    /// TransNormerLLM: a matrix a head.
    TransNormer(TransNormerState),
}

/// What stands for a state's mixer in saved states.
trait Mixer {
    const NAME: &'static str;
}

impl<S: MixerState> Mixer for ModelState<S> {
    const NAME: &'static str = S::MIXER;
}

const fn mixer<S: Mixer>() -> &'static str {
    S::NAME
}

fn other_mixer(got: &str, need: &str) -> InputError {
    InputError::new("state", format!("a state of `{got}`"), format!("one of `{need}`"))
}
