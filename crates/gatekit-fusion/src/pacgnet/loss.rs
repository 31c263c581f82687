//! The three losses of oriented detection.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use gatekit_core::cross_entropy::binary_cross_entropies;
use gatekit_core::{ConfigError, InputError};
use serde::{Deserialize, Serialize};

use super::assignment::{Assignment, TaskAlignedAssigner};
use super::head::{DecodedBoxes, on_host};
use super::prob_iou::{OrientedBox, prob_iou_pairs};

/// Objects less than so many pixels wide or high are not trained on.
const SMALLEST: f64 = 2.0;

/// Weights of the losses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossGains {
    /// Of the boxes' similarity. Default 7.5.
    #[serde(rename = "box")]
    pub boxes: f64,
    /// Of the classes. Default 0.5.
    pub cls: f64,
    /// Of the sides' distributions. Default 1.5.
    pub dfl: f64,
}

impl Default for LossGains {
    fn default() -> Self {
        Self { boxes: 7.5, cls: 0.5, dfl: 1.5 }
    }
}

impl LossGains {
    /// Refuses what is no weight.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the gain.
    pub fn check(&self) -> Result<(), ConfigError> {
        let gains = [("box", self.boxes), ("cls", self.cls), ("dfl", self.dfl)];
        match gains.into_iter().find(|(_, gain)| !(gain.is_finite() && *gain >= 0.0)) {
            Some((field, gain)) => Err(ConfigError::new(field, gain, "a finite number, at least 0")),
            None => Ok(()),
        }
    }
}

/// The objects of a batch of images, checked, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct DetectionTargets {
    images: Vec<Vec<Option<(OrientedBox, usize)>>>,
}

impl DetectionTargets {
    /// From boxes `[B, M, 5]` in pixels, labels `[B, M]` and which of them are objects `[B, M]`. Objects less than two
    /// pixels wide or high are left out.
    ///
    /// # Errors
    ///
    /// [`InputError`] names image and object for a size that is not above 0, a number that is not finite, or a label
    /// that is no class; and arguments whose shapes do not fit.
    pub fn new(
        boxes: Tensor<3>,
        labels: Tensor<2, Int>,
        mask: Tensor<2, Bool>,
        num_classes: usize,
    ) -> Result<Self, InputError> {
        let [batch, objects, sides] = boxes.dims();
        if sides != 5 {
            return Err(InputError::new("gt_boxes", format!("{:?}", boxes.dims()), "[B, M, 5]"));
        }
        for (field, dims) in [("gt_labels", labels.dims()), ("gt_mask", mask.dims())] {
            if dims != [batch, objects] {
                return Err(InputError::new(field, format!("{dims:?}"), format!("[{batch}, {objects}]")));
            }
        }
        let unread = |field: &str| InputError::new(field, "a tensor that cannot be read", "values");
        let boxes: Vec<f64> =
            boxes.into_data().convert::<f64>().try_into_vec().map_err(|_| unread("gt_boxes"))?;
        let labels: Vec<i64> =
            labels.into_data().convert::<i64>().try_into_vec().map_err(|_| unread("gt_labels"))?;
        let mask: Vec<i64> =
            mask.int().into_data().convert::<i64>().try_into_vec().map_err(|_| unread("gt_mask"))?;
        let one = |index: usize| -> Result<Option<(OrientedBox, usize)>, InputError> {
            if mask[index] == 0 {
                return Ok(None);
            }
            let wanted: OrientedBox = std::array::from_fn(|side| boxes[5 * index + side]);
            check(index / objects, index % objects, wanted, labels[index], num_classes)
        };
        let images = (0..batch)
            .map(|image| (image * objects..(image + 1) * objects).map(one).collect())
            .collect::<Result<_, _>>()?;
        Ok(Self { images })
    }

    /// From the objects of every image: boxes in pixels and labels.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn from_lists(images: &[Vec<(OrientedBox, usize)>], num_classes: usize) -> Result<Self, InputError> {
        let one = |image: usize, object: usize, (wanted, label): (OrientedBox, usize)| {
            check(image, object, wanted, label as i64, num_classes)
        };
        let of_image = |(image, objects): (usize, &Vec<(OrientedBox, usize)>)| {
            objects.iter().enumerate().map(|(object, wanted)| one(image, object, *wanted)).collect()
        };
        Ok(Self { images: images.iter().enumerate().map(of_image).collect::<Result<_, _>>()? })
    }

    /// The objects of an image: their numbers, boxes in pixels, labels.
    pub fn of_image(&self, image: usize) -> impl Iterator<Item = (usize, OrientedBox, usize)> {
        let objects = self.images.get(image).map_or(&[][..], Vec::as_slice);
        objects
            .iter()
            .enumerate()
            .filter_map(|(object, wanted)| wanted.map(|(wanted, label)| (object, wanted, label)))
    }

    fn object(&self, image: usize, object: usize) -> Option<(OrientedBox, usize)> {
        self.images.get(image)?.get(object).copied().flatten()
    }
}

/// An object that may be trained on; `None` for one that is too small.
fn check(
    image: usize,
    object: usize,
    wanted: OrientedBox,
    label: i64,
    num_classes: usize,
) -> Result<Option<(OrientedBox, usize)>, InputError> {
    let place = format!("image {image}, object {object}");
    if wanted.iter().any(|value| !value.is_finite()) || wanted[2] <= 0.0 || wanted[3] <= 0.0 {
        let got = format!("{wanted:?} ({place})");
        return Err(InputError::new("gt_boxes", got, "finite numbers, width and height above 0"));
    }
    let known = usize::try_from(label).ok().filter(|&label| label < num_classes);
    let label = known.ok_or_else(|| {
        InputError::new("gt_labels", format!("{label} ({place})"), format!("a class in 0 .. {num_classes}"))
    })?;
    Ok((wanted[2] >= SMALLEST && wanted[3] >= SMALLEST).then_some((wanted, label)))
}

/// The losses, gains applied, each `[1]`; the total of a batch is their sum times the batch size.
#[derive(Debug, Clone)]
pub struct DetectionLoss {
    /// One minus similarity of boxes and objects, weighted by target.
    pub boxes: Tensor<1>,
    /// Binary cross entropy against the soft targets.
    pub cls: Tensor<1>,
    /// Cross entropy of the sides' distributions, weighted by target.
    pub dfl: Tensor<1>,
    /// Which cell was trained on what.
    pub assignment: Assignment,
    batch: usize,
}

impl DetectionLoss {
    /// What is minimised: the sum times the batch size, `[1]`.
    pub fn total(&self) -> Tensor<1> {
        (self.boxes.clone() + self.cls.clone() + self.dfl.clone()) * self.batch as f64
    }

    /// The soft targets, `[B, A, classes]`: the cell's target at the class of its object, else 0.
    pub fn target_scores(&self, targets: &DetectionTargets, classes: usize, device: &Device) -> Tensor<3> {
        let cells = self.assignment.objects.first().map_or(0, Vec::len);
        let values = soft_targets(&self.assignment, targets, classes);
        Tensor::from_data(TensorData::new(values, [self.batch, cells, classes]), device)
    }
}

/// Computes the losses of decoded boxes: cells are assigned to objects, then
///
/// - class: `sum BCE(logits, targets) / T` over all cells and classes, T the sum of targets, at least 1;
/// - box: `sum over assigned cells of (1 - ProbIoU) target / T`, in cells of the level;
/// - distribution: cross entropy of the two bins around the object's unrotated sides, linearly weighted, mean over the
///   four sides, times target, over T.
///
/// Without an assigned cell the last two are 0.
///
/// # Panics
///
/// When the device fails to hand boxes back.
pub fn detection_loss(
    decoded: &DecodedBoxes,
    targets: &DetectionTargets,
    assigner: &TaskAlignedAssigner,
    gains: &LossGains,
) -> DetectionLoss {
    let [batch, count, classes] = decoded.logits.dims();
    let device = decoded.logits.device();
    let (boxes, scores) = (on_host(decoded.pixels()), on_host(decoded.scores()));
    let boxes: Vec<Vec<OrientedBox>> = boxes
        .chunks(5 * count)
        .map(|image| image.chunks_exact(5).map(|one| std::array::from_fn(|side| one[side])).collect())
        .collect();
    let scores: Vec<Vec<f64>> = scores.chunks(count * classes).map(<[f64]>::to_vec).collect();
    let assignment = assigner.assign(&decoded.cells, &boxes, &scores, targets);

    let soft = soft_targets(&assignment, targets, classes);
    let mut positives = Positives::default();
    for (image, owners) in assignment.objects.iter().enumerate() {
        for (cell, owner) in owners.iter().enumerate() {
            let Some((wanted, _)) = owner.and_then(|object| targets.object(image, object)) else {
                continue;
            };
            let (row, weight) = (image * count + cell, assignment.targets[image][cell]);
            positives.push(row, wanted, decoded.cells.centres[cell], decoded.cells.strides[cell], weight);
        }
    }
    let total = soft.iter().sum::<f64>().max(1.0);
    let soft = Tensor::<3>::from_data(TensorData::new(soft, [batch, count, classes]), &device);
    let cls = binary_cross_entropies(decoded.logits.clone(), soft).sum() * (gains.cls / total);
    let (boxes, dfl) = match positives.rows.is_empty() {
        true => (decoded.boxes.clone().sum() * 0.0, decoded.bins.clone().sum() * 0.0),
        false => positives.losses(decoded),
    };
    DetectionLoss {
        boxes: boxes * (gains.boxes / total),
        cls,
        dfl: dfl * (gains.dfl / total),
        assignment,
        batch,
    }
}

/// The cell's target at the class of its object, else 0.
fn soft_targets(assignment: &Assignment, targets: &DetectionTargets, classes: usize) -> Vec<f64> {
    let images = assignment.objects.iter().zip(&assignment.targets).enumerate();
    images
        .flat_map(|(image, (owners, weights))| {
            owners.iter().zip(weights).flat_map(move |(owner, weight)| {
                let label = owner.and_then(|object| targets.object(image, object)).map(|(_, label)| label);
                (0..classes).map(move |class| if label == Some(class) { *weight } else { 0.0 })
            })
        })
        .collect()
}

/// The assigned cells.
#[derive(Default)]
struct Positives {
    /// Image and cell, flattened.
    rows: Vec<i64>,
    /// Objects in cells.
    wanted: Vec<f64>,
    /// Unrotated sides in cells.
    sides: Vec<f64>,
    weights: Vec<f64>,
}

impl Positives {
    fn push(&mut self, row: usize, wanted: OrientedBox, [cx, cy]: [f64; 2], stride: f64, weight: f64) {
        let [x, y, w, h] = [0, 1, 2, 3].map(|side| wanted[side] / stride);
        self.rows.push(row as i64);
        self.wanted.extend([x, y, w, h, wanted[4]]);
        self.sides.extend([cx - (x - w / 2.0), cy - (y - h / 2.0), x + w / 2.0 - cx, y + h / 2.0 - cy]);
        self.weights.push(weight);
    }

    /// Sums over the cells of the box and the distribution loss.
    fn losses(self, decoded: &DecodedBoxes) -> (Tensor<1>, Tensor<1>) {
        let [_, _, _, reg_max] = decoded.bins.dims();
        let (device, count) = (decoded.boxes.device(), self.rows.len());
        let data = |values: Vec<f64>, width: usize| {
            Tensor::<2>::from_data(TensorData::new(values, [count, width]), &device)
        };
        let rows = Tensor::<1, Int>::from_data(self.rows.as_slice(), &device);
        let weights = data(self.weights, 1).squeeze_dim::<1>(1);
        let boxes = decoded.boxes.clone().flatten::<2>(0, 1).select(0, rows.clone());
        let similarity = prob_iou_pairs(boxes, data(self.wanted, 5));
        let of_boxes = ((similarity.neg() + 1.0) * weights.clone()).sum();

        let bins = decoded.bins.clone().flatten::<3>(0, 1).select(0, rows);
        let largest = reg_max as f64 - 1.01;
        let sides: Vec<f64> = self.sides.iter().map(|side| side.clamp(0.0, largest)).collect();
        // The two bins around a side, as weights over all bins.
        let mut shares = vec![0.0; sides.len() * reg_max];
        for (side, shares) in sides.iter().zip(shares.chunks_exact_mut(reg_max)) {
            let (below, part) = (side.floor() as usize, side.fract());
            shares[below] += 1.0 - part;
            shares[below + 1] += part;
        }
        let shares = Tensor::<3>::from_data(TensorData::new(shares, [count, 4, reg_max]), &device);
        let entropy = (log_softmax(bins, 2) * shares).sum_dim(2).neg().squeeze_dim::<2>(2);
        let of_sides = (entropy.mean_dim(1).squeeze_dim::<1>(1) * weights).sum();
        (of_boxes, of_sides)
    }
}
