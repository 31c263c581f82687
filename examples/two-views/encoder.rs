//! A small convolutional encoder that has learned to tell speakers apart: it stands for the self-supervised one.

use burn::module::Module;
use burn::nn::conv::{Conv1d, Conv1dConfig};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig, PaddingConfig1d};
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::core::InputError;
use gatekit::core::activation::gelu;
use gatekit::core::cross_entropy::cross_entropies;
use gatekit::fusion::two_views::SslEncoder;
use gatekit_examples::{ExampleError, Training, progress, tasks, train};
use rand::RngExt;

use crate::speech::{LENGTH, RATE, Speaker, low_pass};

/// Channels of a frame.
pub const WIDTH: usize = 48;
/// Samples from one frame to the next, layer by layer: 320 in all, 50 frames a second.
const STRIDES: [usize; 4] = [5, 4, 4, 4];
const CHANNELS: [usize; 5] = [1, 16, 32, 48, WIDTH];
/// Voices to tell apart.
const SPEAKERS: usize = 20;
/// Utterances of each.
const UTTERANCES: usize = 16;
const BATCH: usize = 24;

/// Strided convolutions with GELU, and a norm.
#[derive(Module, Debug)]
pub struct Encoder {
    layers: Vec<Conv1d>,
    norm: LayerNorm,
}

impl Encoder {
    fn new(device: &Device) -> Self {
        let layer = |(index, stride): (usize, &usize)| {
            // An odd stride and size, or both even: a frame a stride either way.
            let (size, padding) =
                if stride % 2 == 1 { (2 * stride - 1, (stride - 1) / 2) } else { (2 * stride, stride / 2) };
            Conv1dConfig::new(CHANNELS[index], CHANNELS[index + 1], size)
                .with_stride(*stride)
                .with_padding(PaddingConfig1d::Explicit(padding, padding))
                .init(device)
        };
        let layers = STRIDES.iter().enumerate().map(layer).collect();
        Self { layers, norm: LayerNormConfig::new(WIDTH).init(device) }
    }
}

impl SslEncoder for Encoder {
    fn d_ssl(&self) -> usize {
        WIDTH
    }

    fn forward(&self, wave: Tensor<2>) -> Result<Tensor<3>, InputError> {
        let [batch, length] = wave.dims();
        let shortest: usize = STRIDES.iter().product();
        if batch == 0 || length < shortest {
            let need = format!("at least one wave of {shortest} samples");
            return Err(InputError::new("wave", format!("[{batch}, {length}]"), need));
        }
        let x = wave.unsqueeze_dim::<3>(1) * 10.0;
        let x = self.layers.iter().fold(x, |x, layer| gelu(layer.forward(x)));
        Ok(self.norm.forward(x.swap_dims(1, 2)))
    }
}

/// An encoder and the classifier it is trained with.
#[derive(Module, Debug)]
struct Recogniser {
    encoder: Encoder,
    head: Linear,
}

/// An encoder that tells speakers apart, half of the time in speech from a narrower line, so that like large
/// self-supervised encoders it does not rely on the top band; its accuracy on utterances not heard before, and how deaf
/// it is.
pub fn trained(steps: usize, seed: u64, device: &Device) -> Result<(Encoder, f64, [f64; 2]), ExampleError> {
    device.seed(seed);
    let mut random = tasks::random(seed + 5000);
    let speakers: Vec<Speaker> = (0..SPEAKERS).map(|_| Speaker::draw(&mut random)).collect();
    let mut draw = |speaker: usize| speakers[speaker].utterance(None, &mut random);
    let clips: Vec<Vec<f32>> = (0..SPEAKERS * UTTERANCES).map(|index| draw(index % SPEAKERS)).collect();
    let unheard: Vec<Vec<f32>> = (0..4 * SPEAKERS).map(|index| draw(index % SPEAKERS)).collect();
    let recogniser =
        Recogniser { encoder: Encoder::new(device), head: LinearConfig::new(WIDTH, SPEAKERS).init(device) };
    let training = Training { steps, warmup: steps / 10, weight_decay: 1e-4, ..Training::default() };
    let bar = progress(steps, &format!("encoder {seed}"));
    let (mut random, autodiff) = (tasks::random(seed + 6000), device.clone().autodiff());
    let (recogniser, _) = train(recogniser, &training, &bar, |recogniser, _| {
        let mut waves = Vec::with_capacity(BATCH * LENGTH);
        let rows: Vec<usize> = (0..BATCH).map(|_| random.random_range(0..clips.len())).collect();
        for row in &rows {
            if random.random::<bool>() {
                waves.extend(low_pass(&clips[*row], 3500.0 + 4000.0 * random.random::<f32>()));
            } else {
                waves.extend(&clips[*row]);
            }
        }
        let labels: Vec<i64> = rows.iter().map(|row| (row % SPEAKERS) as i64).collect();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [BATCH]), &autodiff);
        let waves = Tensor::from_data(TensorData::new(waves, [BATCH, LENGTH]), &autodiff);
        let frames = recogniser.encoder.forward(waves).expect("waves are long enough");
        cross_entropies(recogniser.head.forward(frames.mean_dim(1).squeeze_dim::<2>(1)), labels).mean()
    });
    let frames = recogniser.encoder.forward(batch(&unheard, device))?;
    let answers = recogniser.head.forward(frames.clone().mean_dim(1).squeeze_dim::<2>(1)).argmax(1);
    let answers = answers.into_data();
    let right =
        answers.iter::<i64>().enumerate().filter(|(index, answer)| index % SPEAKERS == *answer as usize);
    let accuracy = right.count() as f64 / unheard.len() as f64;
    // Without what lies above 5 kHz, and without what lies below 1 kHz.
    let without_top: Vec<Vec<f32>> = unheard.iter().map(|clip| low_pass(clip, 5000.0)).collect();
    let without_bottom: Vec<Vec<f32>> = (unheard.iter())
        .map(|clip| clip.iter().zip(low_pass(clip, 1000.0)).map(|(whole, low)| whole - low).collect())
        .collect();
    let change = |clips: &[Vec<f32>]| -> Result<f64, ExampleError> {
        let difference = recogniser.encoder.forward(batch(clips, device))? - frames.clone();
        let norm = |x: Tensor<3>| x.square().sum().into_scalar::<f64>().sqrt();
        Ok(norm(difference) / norm(frames.clone()))
    };
    let deafness = [change(&without_top)?, change(&without_bottom)?];
    Ok((recogniser.encoder, accuracy, deafness))
}

/// Clips as waves `[B, L]`.
pub fn batch(clips: &[Vec<f32>], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(clips.concat(), [clips.len(), LENGTH]), device)
}

const _: () = assert!(LENGTH.is_multiple_of(320) && RATE == 16_000);
