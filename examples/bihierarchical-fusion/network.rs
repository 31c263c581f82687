//! The models that are compared, at about equal numbers of parameters.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, TensorData};
use gatekit::core::{ConfigError, ModuleConfig};
use gatekit::fusion::bihierarchical_fusion::{
    BiHierarchicalConfig, BiHierarchicalEncoder, FusionKind, LateFusion, MessagePassingLayer, SequenceLayer,
    SerialFusion, StructureLayer, TransformerLayer,
};

use crate::proteins::{Batch, Branch, CUTOFF, LETTERS, ORDERS, WINDOW};

/// How sequence and structure come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Sequence,
    Graph,
    Late,
    Serial,
    Local,
    Global,
}

impl Variant {
    pub const ALL: [Self; 6] =
        [Self::Sequence, Self::Graph, Self::Late, Self::Serial, Self::Local, Self::Global];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sequence => "sequence only",
            Self::Graph => "graph only",
            Self::Late => "late",
            Self::Serial => "serial",
            Self::Local => "local",
            Self::Global => "global",
        }
    }

    /// The model whose number of parameters is nearest to `parameters`, all its widths alike and even.
    pub fn build(self, levels: usize, parameters: usize, device: &Device) -> Result<Network, ConfigError> {
        let mut best = Network::new(self, levels, 2, device)?;
        for width in (4..).step_by(2) {
            let next = Network::new(self, levels, width, device)?;
            if next.num_params().abs_diff(parameters) >= best.num_params().abs_diff(parameters) {
                break;
            }
            best = next;
        }
        Ok(best)
    }
}

/// Letters and positions, a body of both branches or one, and a head for every residue.
#[derive(Module, Debug)]
pub struct Network {
    /// Of the residue before, the residue, and the residue after.
    letters: Vec<Embedding>,
    nodes: Embedding,
    body: Body,
    hidden: Linear,
    head: Linear,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // There are few models, and they are not moved about.
enum Body {
    Sequence(Vec<TransformerLayer>),
    Graph(Vec<MessagePassingLayer>),
    Late(LateFusion),
    Serial(SerialFusion),
    Both(BiHierarchicalEncoder<TransformerLayer, MessagePassingLayer>),
}

impl Network {
    /// All branches of `width` channels.
    pub fn new(variant: Variant, levels: usize, width: usize, device: &Device) -> Result<Self, ConfigError> {
        let kind = if variant == Variant::Global { FusionKind::Global } else { FusionKind::Local };
        let config = BiHierarchicalConfig::new(width, 1)
            .with_structure_dim(width)
            .with_fusion_dim(width)
            .with_fusion(kind)
            .with_num_heads(2)
            .with_sequence_heads(2)
            .with_levels(levels)
            .with_radial_basis(4)
            .with_cutoff(CUTOFF);
        let each = || 0..levels;
        let body = match variant {
            Variant::Sequence => {
                Body::Sequence(each().map(|_| config.sequence_layer(device)).collect::<Result<_, _>>()?)
            }
            Variant::Graph => {
                Body::Graph(each().map(|_| config.structure_layer(device)).collect::<Result<_, _>>()?)
            }
            Variant::Late => Body::Late(LateFusion::new(&config, device)?),
            Variant::Serial => Body::Serial(SerialFusion::new(&config, device)?),
            Variant::Local | Variant::Global => Body::Both(config.try_init(device)?),
        };
        let embedding = |letters| EmbeddingConfig::new(letters, width).init(device);
        Ok(Self {
            letters: (0..WINDOW).map(|_| embedding(LETTERS + 1)).collect(),
            nodes: embedding(LETTERS),
            body,
            hidden: LinearConfig::new(width, width).init(device),
            head: LinearConfig::new(width, ORDERS.len()).init(device),
        })
    }

    /// Logits of the labels of every residue, `[B, N, 2]`, and the weights of both branches a level, if any.
    pub fn forward(&self, batch: &Batch) -> (Tensor<3>, Vec<Tensor<3>>) {
        let x = self.nodes.forward(batch.nodes.clone());
        let letters = self.letters.iter().zip(&batch.letters);
        let s = letters.fold(positions(x.dims(), &x.device()), |s, (embedding, letters)| {
            s + embedding.forward(letters.clone())
        });
        let there = |x: Tensor<3>, branch| if batch.removed == Some(branch) { x.zeros_like() } else { x };
        let (s, x) = (there(s, Branch::Sequence), there(x, Branch::Structure));
        let graph = &batch.graph;
        let (residues, gates) = match &self.body {
            Body::Sequence(layers) => {
                (layers.iter().fold(s, |s, layer| layer.forward(s, &graph.mask)), Vec::new())
            }
            Body::Graph(layers) => (layers.iter().fold(x, |x, layer| layer.forward(x, graph)), Vec::new()),
            Body::Late(body) => (body.forward(s, x, graph), Vec::new()),
            Body::Serial(body) => (body.forward(s, x, graph), Vec::new()),
            Body::Both(body) => {
                let output = body.forward(s, x, graph);
                (output.residues, output.gates)
            }
        };
        (self.head.forward(relu(self.hidden.forward(residues))), gates)
    }
}

/// Sines and cosines of the place in the chain, wavelengths from 4 to 256 residues.
fn positions([batch, residues, width]: [usize; 3], device: &Device) -> Tensor<3> {
    let half = width / 2;
    let values: Vec<f32> = (0..residues)
        .flat_map(|at| {
            (0..width).map(move |channel| {
                let share = (channel % half) as f64 / half.saturating_sub(1).max(1) as f64;
                let angle = at as f64 * std::f64::consts::TAU / (4.0 * 64f64.powf(share));
                (if channel < half { angle.sin() } else { angle.cos() }) as f32
            })
        })
        .collect();
    let one = Tensor::<3>::from_data(TensorData::new(values, [1, residues, width]), device);
    one.expand([batch, residues, width])
}
