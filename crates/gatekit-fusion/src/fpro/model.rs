//! The network.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::tensor::{Device, Tensor};
use gatekit_core::batch_norm::BatchStatistics;
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::conv::convolve;
use gatekit_core::{ConfigError, InputError, ModuleConfig};

use super::blocks::{DecoderBlock, EncoderBlock, conv1, conv3, pixel_shuffle, pixel_unshuffle};
use super::config::{FProConfig, Frequencies};
use super::dynamic_filter::{FrequencyParts, GatedDynamicFilter};
use super::generators::{HighPromptGenerator, LowPromptGenerator};
use super::layout;
use super::prompts::{PromptModule, PromptStage, Prompts};

/// FPro: a restoration transformer of three levels whose decoder is told, at every level, what the first features hold of
/// low and of high frequencies.
///
/// Encoder `e1 = enc1(conv(image))`, `e2 = enc2(down e1)`, `e3 = enc3(down e2)`; decoder `d3 = dec3(e3)`,
/// `d2 = dec2(W [up d3; e2])`, `d1 = dec1([up d2; e1])`, `r = refine(d1)`, and to each of the four is added what its
/// prompts make of it; the result is `conv(r) + image`. The filter splits the first features once.
#[derive(Module, Debug)]
pub struct FPro {
    /// The first features of the image, 3x3.
    pub patch_embed: Conv2d,
    /// d channels.
    pub encoder_level1: Vec<EncoderBlock>,
    /// To half the side.
    pub down1_2: Conv2d,
    /// 2 d channels.
    pub encoder_level2: Vec<EncoderBlock>,
    /// To a quarter of the side.
    pub down2_3: Conv2d,
    /// 4 d channels.
    pub encoder_level3: Vec<EncoderBlock>,
    /// 4 d channels.
    pub decoder_level3: Vec<DecoderBlock>,
    /// To half the side.
    pub up3_2: Conv2d,
    /// From 4 d to 2 d channels, 1x1.
    pub reduce_chan_level2: Conv2d,
    /// 2 d channels.
    pub decoder_level2: Vec<DecoderBlock>,
    /// To the whole side.
    pub up2_1: Conv2d,
    /// 2 d channels.
    pub decoder_level1: Vec<DecoderBlock>,
    /// 2 d channels.
    pub refinement: Vec<DecoderBlock>,
    /// The filter and all prompts; `None` in the network without prompts.
    pub prompting: Option<Prompting>,
    /// What is added to the image, 3x3.
    pub output: Conv2d,
    image_size: usize,
}

/// What the prompts of a network are made with.
#[derive(Module, Debug)]
pub struct Prompting {
    /// Splits the first features.
    pub filter: GatedDynamicFilter,
    /// One a stage, in the order of [`PromptStage::ALL`].
    pub modules: Vec<PromptModule>,
}

/// A restored image, and how its features were split.
#[derive(Debug, Clone)]
pub struct FProOutput {
    /// `[B, C, S, S]`, about in [0, 1].
    pub image: Tensor<4>,
    /// The first features; `None` without prompts.
    pub parts: Option<FrequencyParts>,
}

impl FPro {
    pub(super) fn new(config: &FProConfig, device: &Device) -> Result<Self, ConfigError> {
        let (dim, expansion) = (config.dim, config.ffn_expansion_factor);
        let [blocks1, blocks2, blocks3] = config.num_blocks;
        let [heads1, heads2, heads3] = config.heads;
        let encoder = |count: usize, width: usize| {
            (0..count).map(|_| EncoderBlock::new(width, expansion, device)).collect::<Result<Vec<_>, _>>()
        };
        let decoder = |count: usize, width: usize, heads: usize| {
            (0..count)
                .map(|_| DecoderBlock::new(width, heads, expansion, device))
                .collect::<Result<Vec<_>, _>>()
        };
        let prompting = match config.frequencies {
            Frequencies::None => None,
            _ => Some(Prompting {
                filter: config.filter().try_init(device)?,
                modules: PromptStage::ALL
                    .iter()
                    .map(|stage| config.prompt_module(*stage).try_init(device))
                    .collect::<Result<_, _>>()?,
            }),
        };
        Ok(Self {
            patch_embed: conv3([config.inp_channels, dim], 1, device),
            encoder_level1: encoder(blocks1, dim)?,
            down1_2: conv3([dim, dim / 2], 1, device),
            encoder_level2: encoder(blocks2, 2 * dim)?,
            down2_3: conv3([2 * dim, dim], 1, device),
            encoder_level3: encoder(blocks3, 4 * dim)?,
            decoder_level3: decoder(blocks3, 4 * dim, heads3)?,
            up3_2: conv3([4 * dim, 8 * dim], 1, device),
            reduce_chan_level2: conv1([4 * dim, 2 * dim], device),
            decoder_level2: decoder(blocks2, 2 * dim, heads2)?,
            up2_1: conv3([2 * dim, 4 * dim], 1, device),
            decoder_level1: decoder(blocks1, 2 * dim, heads1)?,
            refinement: decoder(config.num_refinement_blocks, 2 * dim, heads1)?,
            prompting,
            output: conv3([2 * dim, config.out_channels], 1, device),
            image_size: config.image_size,
        })
    }

    /// Pixels S of a side of the images.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// Restores images `[B, C, S, S]` in [0, 1], S the configuration's `image_size`. Images of other sizes go through
    /// [`restore`](Self::restore).
    ///
    /// # Errors
    ///
    /// [`InputError`] for a batch of one with [`BatchStatistics::Batch`] (see [`GatedDynamicFilter::forward`]).
    ///
    /// # Panics
    ///
    /// When the image is not S by S pixels, or has other channels.
    pub fn forward(&self, image: Tensor<4>, statistics: BatchStatistics) -> Result<FProOutput, InputError> {
        self.forward_with(image, statistics, |_, prompts| prompts)
    }

    /// As [`forward`](Self::forward), with the prompts of each stage as `change` hands them on: looked at, removed, or
    /// replaced by something of the same shape.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward), and when a prompt comes back in another shape.
    pub fn forward_with(
        &self,
        image: Tensor<4>,
        statistics: BatchStatistics,
        mut change: impl FnMut(PromptStage, Prompts) -> Prompts,
    ) -> Result<FProOutput, InputError> {
        let [_, _, height, width] = image.dims();
        let size = self.image_size;
        assert!(
            [height, width] == [size, size],
            "FPro: `image` is {height} by {width} pixels, the network's prompts {size} by {size}; restore() takes images of \
             any size"
        );
        let first = convolve(&self.patch_embed, image.clone(), None);
        let parts = match &self.prompting {
            Some(prompting) => Some(prompting.filter.forward(first.clone(), statistics)?),
            None => None,
        };
        let mut prompted = |stage: PromptStage, x: Tensor<4>| match (&self.prompting, &parts) {
            (Some(prompting), Some(parts)) => {
                let module = &prompting.modules[stage as usize];
                let prompts = change(stage, module.prompts(parts.low.clone(), parts.high.clone()));
                x.clone() + module.modulate(prompts, x)
            }
            _ => x,
        };
        let encode = |blocks: &[EncoderBlock], x| blocks.iter().fold(x, |x, block| block.forward(x));
        let decode = |blocks: &[DecoderBlock], x| blocks.iter().fold(x, |x, block| block.forward(x));
        let e1 = encode(&self.encoder_level1, first);
        let e2 = encode(&self.encoder_level2, pixel_unshuffle(convolve(&self.down1_2, e1.clone(), None)));
        let e3 = encode(&self.encoder_level3, pixel_unshuffle(convolve(&self.down2_3, e2.clone(), None)));
        let d3 = prompted(PromptStage::D3, decode(&self.decoder_level3, e3));
        let joined = Tensor::cat(vec![pixel_shuffle(convolve(&self.up3_2, d3, None)), e2], 1);
        let d2 = decode(&self.decoder_level2, convolve(&self.reduce_chan_level2, joined, None));
        let d2 = prompted(PromptStage::D2, d2);
        let joined = Tensor::cat(vec![pixel_shuffle(convolve(&self.up2_1, d2, None)), e1], 1);
        let d1 = prompted(PromptStage::D1, decode(&self.decoder_level1, joined));
        let r = prompted(PromptStage::Refinement, decode(&self.refinement, d1));
        Ok(FProOutput { image: convolve(&self.output, r, None) + image, parts })
    }

    /// What published files call the tensors.
    pub fn tensor_layout() -> TensorLayout {
        layout::network()
    }
}

impl GatedDynamicFilter {
    /// What published files call the tensors.
    pub fn tensor_layout() -> TensorLayout {
        layout::filter(TensorLayout::default(), "")
    }
}

impl HighPromptGenerator {
    /// What published files call the tensors.
    pub fn tensor_layout() -> TensorLayout {
        layout::generator(TensorLayout::default(), "")
    }
}

impl LowPromptGenerator {
    /// What published files call the tensors.
    pub fn tensor_layout() -> TensorLayout {
        layout::generator(TensorLayout::default(), "")
    }
}

impl PromptModule {
    /// What published files call the tensors.
    pub fn tensor_layout() -> TensorLayout {
        layout::prompt_module(TensorLayout::default(), "")
    }
}
