//! Restoring images of any size with a network of one size.

use burn::tensor::{Int, Tensor, TensorData};
use gatekit_core::InputError;
use gatekit_core::batch_norm::BatchStatistics;

use super::model::FPro;

/// Sides are padded to multiples of it.
const MULTIPLE: usize = 8;

/// Where the tiles of an image lie: squares of `size` pixels every `stride` pixels, the last one flush with the border.
///
/// Images are padded first, by reflection at the right and the bottom, to multiples of 8 and at least one tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiling {
    size: usize,
    image: [usize; 2],
    padded: [usize; 2],
    rows: Vec<usize>,
    columns: Vec<usize>,
}

impl Tiling {
    /// Of images of `height` by `width` pixels. The published tiles are 256 pixels wide at a stride of 56.
    ///
    /// # Errors
    ///
    /// [`InputError`] for an image without pixels, a `size` that is no multiple of 8, and a `stride` that is 0 or larger
    /// than `size`, which would leave gaps.
    pub fn new(height: usize, width: usize, size: usize, stride: usize) -> Result<Self, InputError> {
        if height == 0 || width == 0 {
            return Err(InputError::new(
                "image",
                format!("{height} by {width} pixels"),
                "at least one pixel",
            ));
        }
        if size == 0 || !size.is_multiple_of(MULTIPLE) {
            return Err(InputError::new("size", size, format!("a multiple of {MULTIPLE}")));
        }
        if stride == 0 || stride > size {
            return Err(InputError::new("stride", stride, format!("from 1 to the tiles' size {size}")));
        }
        let padded = [height, width].map(|side| side.next_multiple_of(MULTIPLE).max(size));
        let starts = |side: usize| {
            let last = side - size;
            let mut starts: Vec<usize> = (0..last).step_by(stride).collect();
            starts.push(last);
            starts
        };
        let (rows, columns) = (starts(padded[0]), starts(padded[1]));
        Ok(Self { size, image: [height, width], padded, rows, columns })
    }

    /// How many tiles an image has.
    pub fn count(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Upper left corners of the tiles `[row, column]`, row by row.
    pub fn corners(&self) -> impl Iterator<Item = [usize; 2]> + '_ {
        self.rows.iter().flat_map(|&row| self.columns.iter().map(move |&column| [row, column]))
    }

    /// The tiles of `image` `[B, C, H, W]`, each `[B, C, size, size]`, in the order of [`corners`](Self::corners).
    ///
    /// # Panics
    ///
    /// When the image has other sides than the tiling was made for.
    pub fn tile(&self, image: Tensor<4>) -> Vec<Tensor<4>> {
        let ([_, _, height, width], size) = (image.dims(), self.size);
        assert!(
            [height, width] == self.image,
            "Tiling: `image` is {height} by {width} pixels, the tiling made for {:?}",
            self.image
        );
        let padded = reflected(reflected(image, 2, self.padded[0]), 3, self.padded[1]);
        self.corners()
            .map(|[row, column]| padded.clone().narrow(2, row, size).narrow(3, column, size))
            .collect()
    }

    /// Puts tiles `[B, C, size, size]` back, each pixel the mean of the tiles that have it: `[B, C, H, W]`.
    ///
    /// # Panics
    ///
    /// When tiles are missing or of another shape.
    pub fn untile(&self, tiles: &[Tensor<4>]) -> Tensor<4> {
        assert!(tiles.len() == self.count(), "Tiling: {} tiles, need {}", tiles.len(), self.count());
        let ([batch, channels, _, _], size) = (tiles[0].dims(), self.size);
        let [height, width] = self.padded;
        let options = (&tiles[0].device(), tiles[0].dtype());
        let mut sum = Tensor::zeros([batch, channels, height, width], options);
        let mut counts = vec![0.0; height * width];
        for (tile, [row, column]) in tiles.iter().zip(self.corners()) {
            assert!(
                tile.dims() == [batch, channels, size, size],
                "Tiling: a tile {:?} is not {:?}",
                tile.dims(),
                [batch, channels, size, size]
            );
            let place = [0..batch, 0..channels, row..row + size, column..column + size];
            let so_far = sum.clone().slice(place.clone());
            sum = sum.slice_assign(place, so_far + tile.clone());
            for line in row..row + size {
                counts[line * width + column..][..size].iter_mut().for_each(|count| *count += 1.0);
            }
        }
        let counts = Tensor::<4>::from_data(TensorData::new(counts, [1, 1, height, width]), options);
        (sum / counts).narrow(2, 0, self.image[0]).narrow(3, 0, self.image[1])
    }
}

impl FPro {
    /// Restores images `[B, C, H, W]` of any size in [0, 1], tile by tile at this stride, with the running statistics of
    /// the filter; the result, of the same shape, is clamped to [0, 1]. Published: tiles of 256 pixels, stride 56.
    ///
    /// # Errors
    ///
    /// [`InputError`] for images without pixels or with values that are not finite, and for a stride that is 0 or larger
    /// than a tile.
    ///
    /// # Panics
    ///
    /// When the image has other channels than the network.
    pub fn restore(&self, image: Tensor<4>, stride: usize) -> Result<Tensor<4>, InputError> {
        let [_, _, height, width] = image.dims();
        let tiling = Tiling::new(height, width, self.image_size(), stride)?;
        if image.dims()[0] == 0 {
            return Err(InputError::new("image", "a batch of 0", "at least one image"));
        }
        let size = image.clone().abs().max();
        if !size.into_scalar::<f64>().is_finite() || image.clone().sum().into_scalar::<f64>().is_nan() {
            return Err(InputError::new("image", "values that are not finite", "finite values"));
        }
        let restored = (tiling.tile(image).into_iter())
            .map(|tile| Ok(self.forward(tile, BatchStatistics::Running)?.image))
            .collect::<Result<Vec<_>, InputError>>()?;
        Ok(tiling.untile(&restored).clamp(0.0, 1.0))
    }
}

/// `x` lengthened to `to` along an axis by reflection at its ends (without repeating them), as often as it takes.
fn reflected(x: Tensor<4>, axis: usize, to: usize) -> Tensor<4> {
    let from = x.dims()[axis];
    if from == to {
        return x;
    }
    let period = 2 * (from - 1);
    let places = (0..to).map(|place| match period {
        0 => 0,
        _ if place % period < from => (place % period) as i64,
        _ => (period - place % period) as i64,
    });
    let places = Tensor::<1, Int>::from_data(TensorData::new(places.collect(), [to]), &x.device());
    x.select(axis, places)
}
