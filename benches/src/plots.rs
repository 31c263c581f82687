//! What a report measured, drawn as SVG.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use gatekit::core::probe::LinePlot;

use crate::{
    error::BenchError,
    headline::matmul_peak,
    op::Pass,
    plan::on_cpu,
    row::{COPY, MATMUL, Row},
};

type Series = BTreeMap<String, Vec<(f64, f64)>>;

/// Draws what the rows suffice for: times over the length, a picture an op and pass; the share of the
/// matrix-product peak; the share of a copy's bandwidth. Returns the files.
///
/// # Errors
///
/// A picture cannot be written.
pub fn draw(folder: &Path, rows: &[Row]) -> Result<Vec<PathBuf>, BenchError> {
    let mut files = Vec::new();
    for (name, series) in times(rows) {
        let plot = LinePlot::new(&name, "steps", "milliseconds").with_log_x(true).with_log_y(true);
        files.push(write(plot, series, &folder.join(format!("time-{}.svg", name.replace(' ', "-"))))?);
    }
    let shares = share_of_peak(rows);
    if !shares.is_empty() {
        let plot =
            LinePlot::new("Forward, share of the matrix-product peak", "steps", "percent").with_log_x(true);
        files.push(write(plot, shares, &folder.join("matmul-share.svg"))?);
    }
    let shares = share_of_bandwidth(rows);
    if !shares.is_empty() {
        let title = "Decode, share of a copy's bandwidth";
        let plot = LinePlot::new(title, "megabytes of state", "percent").with_log_x(true);
        files.push(write(plot, shares, &folder.join("bandwidth-share.svg"))?);
    }
    Ok(files)
}

fn write(plot: LinePlot, series: Series, path: &Path) -> Result<PathBuf, BenchError> {
    let plot = series.into_iter().fold(plot, |plot, (name, mut points)| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        plot.with_series(&name, points)
    });
    plot.write_svg(path).map_err(|source| BenchError::Plot { path: path.to_path_buf(), source })?;
    Ok(path.to_path_buf())
}

/// By op and pass: the lines of those with several lengths at the same other sizes.
fn times(rows: &[Row]) -> BTreeMap<String, Series> {
    let mut pictures: BTreeMap<String, Series> = BTreeMap::new();
    for row in rows.iter().filter(|row| ![MATMUL, COPY].contains(&row.op.as_str())) {
        let Some(seconds) = row.median_s else { continue };
        let sizes = row.shape().with_time(1).to_string().replacen("x1x", "xTx", 1);
        let line = format!("{} {}, {sizes}", row.device, row.form);
        let picture = pictures.entry(format!("{} {}", row.op, row.pass)).or_default();
        let points = picture.entry(line).or_default();
        // The contests of two lengths repeat a length.
        if points.iter().all(|point| point.0 != row.time as f64) {
            points.push((row.time as f64, 1e3 * seconds));
        }
    }
    for picture in pictures.values_mut() {
        picture.retain(|_, points| points.len() > 1);
    }
    pictures.retain(|_, picture| !picture.is_empty());
    pictures
}

fn share_of_peak(rows: &[Row]) -> Series {
    let mut series = Series::new();
    for row in rows.iter().filter(|row| row.form == "fused") {
        let peak = matmul_peak(rows, &row.device, &row.dtype);
        if let Some((rate, peak)) = row.flops.zip(peak) {
            let sizes = row.shape().with_time(1).to_string().replacen("x1x", "xTx", 1);
            let points = series.entry(format!("{} {}, {sizes}", row.device, row.op)).or_default();
            if points.iter().all(|point| point.0 != row.time as f64) {
                points.push((row.time as f64, 100.0 * rate / peak));
            }
        }
    }
    series
}

fn share_of_bandwidth(rows: &[Row]) -> Series {
    let mut series = Series::new();
    for row in rows.iter().filter(|row| row.pass == Pass::Decode && row.op != COPY) {
        let place = if on_cpu(&row.device) || row.device == "ggml" { "memory" } else { &row.device };
        let copy = rows
            .iter()
            .find(|other| other.op == COPY && other.contest == row.contest && other.device == place);
        if let Some((rate, copy)) = row.bytes_per_s.zip(copy.and_then(|copy| copy.bytes_per_s)) {
            let megabytes = row.shape().state_bytes() as f64 / 1e6;
            let name = format!("{} {} {}", row.device, row.op, row.form);
            series.entry(name).or_default().push((megabytes, 100.0 * rate / copy));
        }
    }
    series
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{row::samples::row, shape::Shape};

    #[test]
    fn pictures_are_drawn_of_what_there_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut rows = Vec::new();
        for time in [256, 512, 1024] {
            let mut row =
                row("kda", "fused", "flex", Pass::Forward, Shape::new(1, time, 4, 64), 1e-6 * time as f64);
            row.flops = Some(40e9);
            rows.push(row);
        }
        assert_eq!(draw(folder.path(), &rows).expect("drawn").len(), 1);
        let mut product = row(MATMUL, "product", "flex", Pass::Forward, Shape::new(1, 512, 1, 512), 0.01);
        product.flops = Some(100e9);
        rows.push(product);
        for (op, form, device, rate) in [("kda", "fused", "flex", 9e9), (COPY, "copy", "memory", 10e9)] {
            let mut row = row(op, form, device, Pass::Decode, Shape::new(1, 1, 4, 64), 0.01);
            (row.contest, row.bytes_per_s) = ("decode".into(), Some(rate));
            rows.push(row);
        }
        let files = draw(folder.path(), &rows).expect("drawn");
        assert_eq!(files.len(), 3, "{files:?}");
        let picture = fs::read_to_string(&files[0]).expect("read");
        assert!(picture.contains("flex fused, 1xTx4x64"), "{picture}");
        assert!(files[0].ends_with("time-kda-forward.svg"));
    }

    #[test]
    fn one_length_is_no_line_and_nothing_is_no_picture() {
        let folder = tempfile::tempdir().expect("a folder");
        let rows = [row("kda", "fused", "flex", Pass::Forward, Shape::new(1, 64, 4, 64), 1.0)];
        assert!(draw(folder.path(), &rows).expect("drawn").is_empty());
    }
}
