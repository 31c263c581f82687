//! Small pictures side by side in one JPEG file.

use std::path::Path;

use jpeg_encoder::{ColorType, Encoder};

use crate::error::ExampleError;

/// Screen pixels between pictures.
const GAP: usize = 8;

/// A square picture, row by row, in RGB.
pub type Panel = Vec<[u8; 3]>;

/// Writes rows of pictures of `size` by `size` pixels, each pixel `scale` screen pixels wide.
///
/// # Errors
///
/// [`ExampleError::Unusable`] when the rows differ in length, a picture has another size, there is none, or the file
/// cannot be written.
pub fn write_panels(
    rows: &[Vec<Panel>],
    size: usize,
    scale: usize,
    path: impl AsRef<Path>,
) -> Result<(), ExampleError> {
    let path = path.as_ref();
    let refused = |reason: String| ExampleError::unusable(path, reason);
    let columns = rows.first().map_or(0, Vec::len);
    if columns == 0 || size * scale == 0 || rows.iter().any(|row| row.len() != columns) {
        return Err(refused("no rectangle of pictures".into()));
    }
    if rows.iter().flatten().any(|panel| panel.len() != size * size) {
        return Err(refused(format!("a picture is not {size} by {size} pixels")));
    }
    let side = size * scale;
    let [width, height] = [columns, rows.len()].map(|count| count * (side + GAP) - GAP);
    let mut pixels = vec![255u8; 3 * width * height];
    for (line, row) in rows.iter().enumerate() {
        for (place, panel) in row.iter().enumerate() {
            for index in 0..side * side {
                let (y, x) = (index / side, index % side);
                let at = 3 * ((line * (side + GAP) + y) * width + place * (side + GAP) + x);
                pixels[at..at + 3].copy_from_slice(&panel[y / scale * size + x / scale]);
            }
        }
    }
    let fits =
        |value: usize| u16::try_from(value).map_err(|_| refused(format!("{value} pixels are too many")));
    let encoder = Encoder::new_file(path, 90).map_err(|error| refused(error.to_string()))?;
    let encoded = encoder.encode(&pixels, fits(width)?, fits(height)?, ColorType::Rgb);
    encoded.map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_of_pictures_are_written_and_others_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.jpg");
        let panel = || vec![[1, 2, 3]; 4];
        write_panels(&[vec![panel(), panel()], vec![panel(), panel()]], 2, 3, &path).expect("written");
        assert_eq!(std::fs::read(&path).expect("a file")[..2], [0xff, 0xd8]);
        assert!(write_panels(&[vec![panel()], vec![panel(), panel()]], 2, 3, &path).is_err());
        assert!(write_panels(&[vec![panel()]], 3, 3, &path).is_err());
        assert!(write_panels(&[], 3, 3, &path).is_err());
    }
}
