//! Windows of maps as sequences, for attention that stays within them.

use burn::tensor::Tensor;

/// Cuts maps into windows of `size` by `size` pixels: `[B, C, H, W]` to `[B H W / size^2, size^2, C]`.
///
/// Windows follow one another row by row, and so do the pixels of a window. Liu et al., "Swin Transformer" (arXiv
/// 2103.14030), section 3.2.
///
/// # Panics
///
/// When `size` does not divide both sides.
pub fn window_partition(x: Tensor<4>, size: usize) -> Tensor<3> {
    let [batch, channels, height, width] = x.dims();
    assert!(
        size > 0 && height.is_multiple_of(size) && width.is_multiple_of(size),
        "window_partition: `x` {:?} does not divide into windows of {size} by {size}",
        x.dims()
    );
    let (rows, columns) = (height / size, width / size);
    x.reshape([batch, channels, rows, size, columns, size]).permute([0, 2, 4, 3, 5, 1]).reshape([
        batch * rows * columns,
        size * size,
        channels,
    ])
}

/// Puts windows back: `[B H W / size^2, size^2, C]` to `[B, C, H, W]` with `[H, W] = sides`, the inverse of
/// [`window_partition`].
///
/// # Panics
///
/// When the windows do not make up whole maps of these sides.
pub fn window_merge(windows: Tensor<3>, size: usize, sides: [usize; 2]) -> Tensor<4> {
    let ([count, pixels, channels], [height, width]) = (windows.dims(), sides);
    let (rows, columns) = (height / size.max(1), width / size.max(1));
    assert!(
        pixels == size * size
            && [rows * size, columns * size] == sides
            && count.is_multiple_of((rows * columns).max(1)),
        "window_merge: windows {:?} of {size} by {size} do not make up maps of {sides:?}",
        windows.dims()
    );
    let batch = count / (rows * columns).max(1);
    windows
        .reshape([batch, rows, columns, size, size, channels])
        .permute([0, 5, 1, 3, 2, 4])
        .reshape([batch, channels, height, width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{devices, float32, values};

    #[test]
    fn windows_go_row_by_row_and_back() {
        for device in devices() {
            let x: Vec<f64> = (0..2 * 2 * 4 * 6).map(f64::from).collect();
            let map = float32(&x, [2, 2, 4, 6], &device);
            let windows = window_partition(map.clone(), 2);
            assert_eq!(windows.dims(), [12, 4, 2]);
            // Second window of the first map: rows 0 and 1, columns 2 and 3; both channels of a pixel side by side.
            let second = values(windows.clone().narrow(0, 1, 1));
            assert_eq!(second, [2.0, 26.0, 3.0, 27.0, 8.0, 32.0, 9.0, 33.0]);
            assert_eq!(values(window_merge(windows, 2, [4, 6])), x);
            let whole = window_partition(map.narrow(3, 0, 4), 4);
            assert_eq!(whole.dims(), [2, 16, 2]);
        }
    }

    #[test]
    #[should_panic(expected = "does not divide into windows of 4 by 4")]
    fn sides_that_do_not_divide_panic() {
        window_partition(Tensor::zeros([1, 1, 4, 6], &devices().remove(0)), 4);
    }

    #[test]
    #[should_panic(expected = "do not make up maps of [4, 6]")]
    fn windows_of_other_maps_panic() {
        window_merge(Tensor::zeros([5, 4, 1], &devices().remove(0)), 2, [4, 6]);
    }
}
