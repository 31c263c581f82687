//! The anchor-free head: a box distribution, class logits and an angle for every cell.

use burn::module::{Initializer, Module};
use burn::nn::conv::Conv2d;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use gatekit_core::batch_norm::BatchStatistics;
use gatekit_core::conv::convolve;
use gatekit_core::gate::sigmoid;

use super::blocks::{ConvBlock, convolution};
use super::config::PacgNetConfig;
use super::evaluation::BoxList;

/// One branch at one level: two 3x3 blocks and a projection. In published files its parts are numbered.
#[derive(Module, Debug)]
pub struct Branch {
    /// First block.
    pub first: ConvBlock,
    /// Second block.
    pub second: ConvBlock,
    /// 1x1, with a bias.
    pub project: Conv2d,
}

impl Branch {
    fn forward(&self, x: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        let x = self.second.forward(self.first.forward(x, statistics), statistics);
        convolve(&self.project, x, None)
    }
}

/// The head over P3, P4 and P5.
#[derive(Module, Debug)]
pub struct OrientedDetectHead {
    /// Box branches, to 4 R bins.
    pub cv2: Vec<Branch>,
    /// Class branches.
    pub cv3: Vec<Branch>,
    /// Angle branches.
    pub cv4: Vec<Branch>,
    /// Bins R of a side.
    pub reg_max: usize,
    /// Pixels of a cell, a level.
    pub strides: [usize; 3],
}

/// What the head says of every cell, still undecoded.
#[derive(Debug, Clone)]
pub struct Detections {
    /// P3, P4, P5, `[B, 4 R + classes, h, w]`: bins of left, top, right and bottom, then class logits.
    pub maps: [Tensor<4>; 3],
    /// Logits of the angle, `[B, 1, A]`, cells level by level and row by row.
    pub angle: Tensor<3>,
}

/// Boxes and scores of every cell, level by level and row by row; A cells.
#[derive(Debug, Clone)]
pub struct DecodedBoxes {
    /// `(x, y, w, h, theta)` in cells of its level, `[B, A, 5]`.
    pub boxes: Tensor<3>,
    /// Logits of the side distributions, `[B, A, 4, R]`.
    pub bins: Tensor<4>,
    /// Class logits, `[B, A, classes]`.
    pub logits: Tensor<3>,
    /// Cells on the host.
    pub cells: Cells,
}

/// Where the cells are.
#[derive(Debug, Clone, PartialEq)]
pub struct Cells {
    /// Centres `(x, y)` in cells of their level.
    pub centres: Vec<[f64; 2]>,
    /// Pixels of a cell.
    pub strides: Vec<f64>,
}

impl Cells {
    /// Of levels of these heights and widths.
    pub fn new(sizes: &[[usize; 2]; 3], strides: [usize; 3]) -> Self {
        let mut cells = Self { centres: Vec::new(), strides: Vec::new() };
        for ([height, width], stride) in sizes.iter().zip(strides) {
            for y in 0..*height {
                cells.centres.extend((0..*width).map(|x| [x as f64 + 0.5, y as f64 + 0.5]));
            }
            cells.strides.resize(cells.centres.len(), stride as f64);
        }
        cells
    }

    /// Number of cells A.
    pub fn len(&self) -> usize {
        self.centres.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.centres.is_empty()
    }

    /// The strides, `[1, A, 1]`.
    pub fn stride_tensor(&self, device: &Device) -> Tensor<3> {
        Tensor::from_data(TensorData::new(self.strides.clone(), [1, self.len(), 1]), device)
    }

    /// The centres, `[1, A, 2]`.
    pub fn centre_tensor(&self, device: &Device) -> Tensor<3> {
        let values: Vec<f64> = self.centres.iter().flatten().copied().collect();
        Tensor::from_data(TensorData::new(values, [1, self.len(), 2]), device)
    }
}

impl OrientedDetectHead {
    pub(super) fn new(config: &PacgNetConfig, device: &Device) -> Self {
        let levels = [2, 3, 4].map(|level| config.channels[level]);
        let norm = config.norm();
        let bins = 4 * config.reg_max;
        let widths = [
            config.min_head_channels.max(levels[0] / 4).max(bins),
            levels[0].max(config.num_classes.min(100)),
            (levels[0] / 4).max(1),
        ];
        let branch = |from: usize, inner: usize, to: usize, bias: Option<f64>| {
            let mut project = convolution([inner, to], 1, 1, 1, true, device);
            if let Some(value) = bias {
                project.bias = Some(Initializer::Constant { value }.init([to], device));
            }
            Branch {
                first: ConvBlock::new([from, inner], 3, 1, norm, device),
                second: ConvBlock::new([inner, inner], 3, 1, norm, device),
                project,
            }
        };
        let all = || levels.iter().zip(config.strides);
        // At the start about five objects are expected in an image of 640 pixels.
        let rare = |stride: usize| (5.0 / config.num_classes as f64 / (640.0 / stride as f64).powi(2)).ln();
        Self {
            cv2: all().map(|(&from, _)| branch(from, widths[0], bins, Some(1.0))).collect(),
            cv3: all()
                .map(|(&from, stride)| branch(from, widths[1], config.num_classes, Some(rare(stride))))
                .collect(),
            cv4: all().map(|(&from, _)| branch(from, widths[2], 1, None)).collect(),
            reg_max: config.reg_max,
            strides: config.strides,
        }
    }

    /// N3, N4, N5 to what they say of every cell.
    ///
    /// # Panics
    ///
    /// When the channels do not fit.
    pub fn forward(&self, levels: [Tensor<4>; 3], statistics: BatchStatistics) -> Detections {
        let mut angles = Vec::new();
        let mut maps = Vec::new();
        for (level, x) in levels.into_iter().enumerate() {
            let boxes = self.cv2[level].forward(x.clone(), statistics);
            let classes = self.cv3[level].forward(x.clone(), statistics);
            angles.push(self.cv4[level].forward(x, statistics).flatten::<3>(2, 3));
            maps.push(Tensor::cat(vec![boxes, classes], 1));
        }
        let maps = maps.try_into().unwrap_or_else(|_| unreachable!("there were three levels"));
        Detections { maps, angle: Tensor::cat(angles, 2) }
    }

    /// Decodes what the head says; see [`Detections::decode`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn decode(&self, detections: Detections) -> DecodedBoxes {
        detections.decode(self.reg_max, self.strides)
    }
}

impl Detections {
    /// Boxes in cells of their level. Sides l, t, r, b are the expected bin of their distributions, the angle is
    /// `theta = (sigmoid(a) - 1/4) pi`, the centre that of the cell plus `((r - l) / 2, (b - t) / 2)` turned by theta,
    /// the size `(l + r, t + b)`.
    ///
    /// # Panics
    ///
    /// When the maps have no more channels than `4 reg_max`, or the angles are not one a cell.
    pub fn decode(self, reg_max: usize, strides: [usize; 3]) -> DecodedBoxes {
        let sizes = [0, 1, 2].map(|level| {
            let [_, _, height, width] = self.maps[level].dims();
            [height, width]
        });
        let cells = Cells::new(&sizes, strides);
        let flat = self.maps.map(|map| map.flatten::<3>(2, 3)).to_vec();
        let all = Tensor::cat(flat, 2).swap_dims(1, 2);
        let [batch, count, width] = all.dims();
        assert!(
            width > 4 * reg_max && self.angle.dims() == [batch, 1, count],
            "Detections: {width} channels of the maps and `angle` {:?} do not fit 4 x {reg_max} bins and {count} cells",
            self.angle.dims()
        );
        let device = all.device();
        let bins = all.clone().narrow(2, 0, 4 * reg_max).reshape([batch, count, 4, reg_max]);
        let logits = all.narrow(2, 4 * reg_max, width - 4 * reg_max);
        let values = Tensor::<1, burn::tensor::Int>::arange(0..reg_max as i64, &device).float();
        let sides =
            (softmax(bins.clone(), 3) * values.reshape([1, 1, 1, reg_max])).sum_dim(3).squeeze_dim::<3>(3);
        let theta = (sigmoid(self.angle.swap_dims(1, 2)) - 0.25) * std::f64::consts::PI;
        let (near, far) = (sides.clone().narrow(2, 0, 2), sides.narrow(2, 2, 2));
        let offset = (far.clone() - near.clone()) / 2.0;
        let (dx, dy) = (offset.clone().narrow(2, 0, 1), offset.narrow(2, 1, 1));
        let (sin, cos) = (theta.clone().sin(), theta.clone().cos());
        let turned =
            Tensor::cat(vec![dx.clone() * cos.clone() - dy.clone() * sin.clone(), dx * sin + dy * cos], 2);
        let centre = turned + cells.centre_tensor(&device);
        let boxes = Tensor::cat(vec![centre, near + far, theta], 2);
        DecodedBoxes { boxes, bins, logits, cells }
    }
}

impl DecodedBoxes {
    /// `(x, y, w, h, theta)` in pixels, `[B, A, 5]`.
    pub fn pixels(&self) -> Tensor<3> {
        let stride = self.cells.stride_tensor(&self.boxes.device());
        let sizes = self.boxes.clone().narrow(2, 0, 4) * stride;
        Tensor::cat(vec![sizes, self.boxes.clone().narrow(2, 4, 1)], 2)
    }

    /// Every class of every cell whose score is above `threshold`, on the host; images are numbered from `first_image`.
    /// A score that is not a number is kept.
    ///
    /// # Panics
    ///
    /// When the device fails to hand values back.
    pub fn above(&self, threshold: f64, first_image: usize) -> BoxList {
        let [_, count, classes] = self.logits.dims();
        let (boxes, scores) = (on_host(self.pixels()), on_host(self.scores()));
        let mut list = BoxList::default();
        for (index, &score) in
            scores.iter().enumerate().filter(|(_, score)| score.is_nan() || **score > threshold)
        {
            let (cell, label) = (index / classes, index % classes);
            list.boxes.push(std::array::from_fn(|side| boxes[5 * cell + side]));
            list.labels.push(label);
            list.image.push(first_image + cell / count);
            list.scores.push(score);
        }
        list
    }

    /// Class scores in (0, 1), `[B, A, classes]`.
    pub fn scores(&self) -> Tensor<3> {
        sigmoid(self.logits.clone())
    }
}

/// A tensor's values.
pub(super) fn on_host(tensor: Tensor<3>) -> Vec<f64> {
    tensor.detach().into_data().convert::<f64>().try_into_vec().expect("the device hands values back")
}
