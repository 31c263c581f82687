//! One type for the layers of a hybrid stack, whatever each of them is.

use gatekit_core::checkpoint::{NamedTensors, TensorError, TensorProblem};

/// Defines an enum of token mixers and the enum of their streaming states.
///
/// Parameters are named as in the layers themselves; in saved states the kind of layer stands
/// before the names of a layer's tensors.
macro_rules! mixer_enum {
    (
        $(#[$mixer_attribute:meta])* $mixer:ident,
        $(#[$state_attribute:meta])* $state:ident as $saved:literal,
        { $($(#[$variant_attribute:meta])* $variant:ident($layer:ident) = $name:literal,)+ }
    ) => {
        $(#[$mixer_attribute])*
        #[derive(::burn::module::Module, Debug)]
        #[allow(clippy::large_enum_variant, reason = "a model holds a few, by value like every module")]
        pub enum $mixer {
            $($(#[$variant_attribute])* $variant($layer),)+
        }

        $(#[$state_attribute])*
        #[derive(Debug, Clone)]
        #[allow(clippy::large_enum_variant, reason = "a model holds a few")]
        pub enum $state {
            $($(#[$variant_attribute])* $variant(<$layer as $crate::backbone::TokenMixer>::State),)+
        }

        impl $mixer {
            /// What kind of layer this is.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }
        }

        impl $state {
            /// Of what kind of layer this is the state.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }
        }

        impl $crate::backbone::TokenMixer for $mixer {
            type State = $state;

            fn forward(
                &self,
                x: ::burn::tensor::Tensor<3>,
                context: &$crate::backbone::MixerContext<'_>,
            ) -> ::burn::tensor::Tensor<3> {
                match self {
                    $(Self::$variant(layer) => $crate::backbone::TokenMixer::forward(layer, x, context),)+
                }
            }

            fn prefill(
                &self,
                x: ::burn::tensor::Tensor<3>,
                state: $state,
                context: &$crate::backbone::MixerContext<'_>,
            ) -> (::burn::tensor::Tensor<3>, $state) {
                match (self, state) {
                    $((Self::$variant(layer), $state::$variant(state)) => {
                        let (y, state) = $crate::backbone::TokenMixer::prefill(layer, x, state, context);
                        (y, $state::$variant(state))
                    })+
                    (layer, state) => panic!("{}", $crate::mixer_enum::other_state(layer.name(), state.name())),
                }
            }

            fn step(
                &self,
                x: ::burn::tensor::Tensor<2>,
                state: $state,
                context: &$crate::backbone::MixerContext<'_>,
            ) -> (::burn::tensor::Tensor<2>, $state) {
                match (self, state) {
                    $((Self::$variant(layer), $state::$variant(state)) => {
                        let (y, state) = $crate::backbone::TokenMixer::step(layer, x, state, context);
                        (y, $state::$variant(state))
                    })+
                    (layer, state) => panic!("{}", $crate::mixer_enum::other_state(layer.name(), state.name())),
                }
            }

            fn empty_state(&self, batch: usize, device: &::burn::tensor::Device) -> $state {
                match self {
                    $(Self::$variant(layer) => $state::$variant(
                        $crate::backbone::TokenMixer::empty_state(layer, batch, device),
                    ),)+
                }
            }

            fn check_state(&self, state: &$state, batch: usize) -> Result<(), ::gatekit_core::InputError> {
                match (self, state) {
                    $((Self::$variant(layer), $state::$variant(state)) => {
                        $crate::backbone::TokenMixer::check_state(layer, state, batch)
                    })+
                    (layer, state) => Err($crate::mixer_enum::other_state(layer.name(), state.name())),
                }
            }
        }

        impl $crate::backbone::MixerState for $state {
            const MIXER: &'static str = $saved;

            fn bytes(&self) -> usize {
                match self {
                    $(Self::$variant(state) => $crate::backbone::MixerState::bytes(state),)+
                }
            }

            fn to_device(self, device: &::burn::tensor::Device) -> Self {
                match self {
                    $(Self::$variant(state) => {
                        Self::$variant($crate::backbone::MixerState::to_device(state, device))
                    })+
                }
            }

            fn to_tensors(&self) -> ::gatekit_core::checkpoint::NamedTensors {
                let tensors = match self {
                    $(Self::$variant(state) => $crate::backbone::MixerState::to_tensors(state),)+
                };
                let kind = self.name();
                tensors.into_iter().map(|(name, data)| (format!("{kind}.{name}"), data)).collect()
            }

            fn from_tensors(
                tensors: ::gatekit_core::checkpoint::NamedTensors,
                device: &::burn::tensor::Device,
            ) -> Result<Self, ::gatekit_core::checkpoint::TensorError> {
                let (kind, tensors) = $crate::mixer_enum::kind_of(tensors, &[$($name),+])?;
                match kind {
                    $($name => $crate::backbone::MixerState::from_tensors(tensors, device)
                        .map(Self::$variant)
                        .map_err(|error| error.within(kind)),)+
                    _ => unreachable!("one of the names above"),
                }
            }
        }
    };
}

pub(crate) use mixer_enum;

/// The error for the state of another kind of layer.
pub(crate) fn other_state(layer: &str, state: &str) -> gatekit_core::InputError {
    gatekit_core::InputError::new("mixer", format!("a state of `{state}`"), format!("one of `{layer}`"))
}

/// Which of `kinds` stands before all names, and the tensors without it.
pub(crate) fn kind_of(
    tensors: NamedTensors,
    kinds: &[&'static str],
) -> Result<(&'static str, NamedTensors), TensorError> {
    let first = tensors.keys().next().map_or("", |name| name.split('.').next().unwrap_or_default());
    let Some(&kind) = kinds.iter().find(|kind| **kind == first) else {
        let problem = if tensors.is_empty() { TensorProblem::Missing } else { TensorProblem::Unexpected };
        return Err(TensorError::new(tensors.keys().next().map_or("memory", String::as_str), problem));
    };
    let strip = |(name, data): (String, _)| match name.strip_prefix(kind).and_then(|n| n.strip_prefix('.')) {
        Some(rest) => Ok((rest.to_string(), data)),
        None => Err(TensorError::new(name, TensorProblem::Unexpected)),
    };
    Ok((kind, tensors.into_iter().map(strip).collect::<Result<_, _>>()?))
}
