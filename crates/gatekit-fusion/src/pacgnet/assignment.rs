//! Task-aligned assignment: which cell is trained to find which object.

use super::head::Cells;
use super::loss::DetectionTargets;
use super::prob_iou::{OrientedBox, prob_iou};

/// Powers and number of cells of the assignment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TaskAlignedAssigner {
    /// Cells that an object may take.
    pub topk: usize,
    /// Power of the class score.
    pub alpha: f64,
    /// Power of the similarity.
    pub beta: f64,
}

/// Which object every cell is trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// By image and cell: the object.
    pub objects: Vec<Vec<Option<usize>>>,
    /// By image and cell: the soft target of the object's class, 0 for other cells.
    pub targets: Vec<Vec<f64>>,
}

impl TaskAlignedAssigner {
    /// Assigns the objects of every image to cells. A cell is a candidate for an object if its centre lies in the
    /// object's box, edges included; with the similarity u ([`prob_iou`], at least 0) and the score s of the object's
    /// class the cell is worth `q = s^alpha u^beta`, 0 for other cells. An object takes the `topk` cells that are worth
    /// most (of equal ones the first), as far as they are candidates; a cell that several take goes to the object it is
    /// most similar to. The target of a cell is `q max u / (max q + 1e-9)`, maxima over the cells that the object keeps.
    ///
    /// `boxes` in pixels and `scores` by image and cell, `scores[image][cell * classes + class]`.
    pub fn assign(
        &self,
        cells: &Cells,
        boxes: &[Vec<OrientedBox>],
        scores: &[Vec<f64>],
        targets: &DetectionTargets,
    ) -> Assignment {
        let images = boxes.iter().zip(scores).enumerate();
        let (objects, targets) =
            images.map(|(image, (boxes, scores))| self.image(cells, boxes, scores, targets, image)).unzip();
        Assignment { objects, targets }
    }

    fn image(
        &self,
        cells: &Cells,
        boxes: &[OrientedBox],
        scores: &[f64],
        targets: &DetectionTargets,
        image: usize,
    ) -> (Vec<Option<usize>>, Vec<f64>) {
        let count = cells.len();
        let classes = scores.len() / count.max(1);
        // By object: its number, similarities and worths of all cells, and the cells it takes.
        let taken: Vec<(usize, Vec<f64>, Vec<f64>, Vec<bool>)> = targets
            .of_image(image)
            .map(|(object, wanted, label)| {
                let mut similarity = vec![0.0; count];
                let mut worth = vec![0.0; count];
                for cell in (0..count).filter(|&cell| inside(cells, cell, wanted)) {
                    similarity[cell] = prob_iou(wanted, boxes[cell]).max(0.0);
                    let score = scores[cell * classes + label];
                    worth[cell] = score.powf(self.alpha) * similarity[cell].powf(self.beta);
                }
                let mut order: Vec<usize> = (0..count).collect();
                order.sort_by(|&a, &b| worth[b].total_cmp(&worth[a]));
                let mut takes = vec![false; count];
                for &cell in order.iter().take(self.topk).filter(|&&cell| inside(cells, cell, wanted)) {
                    takes[cell] = true;
                }
                (object, similarity, worth, takes)
            })
            .collect();

        let mut owner: Vec<Option<usize>> = vec![None; count];
        for (cell, owner) in owner.iter_mut().enumerate() {
            let takers = taken.iter().enumerate().filter(|(_, (.., takes))| takes[cell]);
            *owner = match takers.clone().count() {
                0 => None,
                1 => takers.map(|(index, _)| index).next(),
                // As published, an object that did not take the cell may be the most similar one.
                _ => {
                    (0..taken.len()).reduce(|best, index| match taken[index].1[cell] > taken[best].1[cell] {
                        true => index,
                        false => best,
                    })
                }
            };
        }
        let mut target = vec![0.0; count];
        for (index, (_, similarity, worth, _)) in taken.iter().enumerate() {
            let kept = || (0..count).filter(|&cell| owner[cell] == Some(index));
            let largest = |values: &[f64]| kept().map(|cell| values[cell]).fold(0.0, f64::max);
            let scale = largest(similarity) / (largest(worth) + 1e-9);
            for cell in kept() {
                target[cell] = worth[cell] * scale;
            }
        }
        (owner.into_iter().map(|owner| owner.map(|index| taken[index].0)).collect(), target)
    }
}

/// Whether a cell's centre lies in a box given in pixels.
fn inside(cells: &Cells, cell: usize, [x, y, w, h, theta]: OrientedBox) -> bool {
    let stride = cells.strides[cell];
    let [dx, dy] = [cells.centres[cell][0] * stride - x, cells.centres[cell][1] * stride - y];
    let (sin, cos) = theta.sin_cos();
    (dx * cos + dy * sin).abs() <= w / 2.0 && (dy * cos - dx * sin).abs() <= h / 2.0
}
