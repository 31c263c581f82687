//! Heat maps as SVG files.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;

use super::plot::{AXIS, Axis, COLOURS, FONT, PlotError, TEXT, label};

/// Viridis at equal steps (Smith and van der Walt): lightness rises evenly, also for colour-blind readers.
const SCALE: [[u8; 3]; 9] = [
    [68, 1, 84],
    [71, 45, 123],
    [59, 82, 139],
    [44, 114, 142],
    [33, 145, 140],
    [40, 174, 128],
    [94, 201, 98],
    [173, 220, 48],
    [253, 231, 37],
];
/// Shades that are told apart; neighbours of one shade are drawn in one stroke.
const LEVELS: usize = 64;

/// Rows and columns of values as colours: load of experts over training steps, accuracy over two thresholds.
///
/// Cells that are not finite stay blank. The first row is at the top unless
/// [`with_first_row_at_bottom`](Self::with_first_row_at_bottom) says otherwise. A file has at most about 10 bytes a
/// cell: 100 KB for 100 by 100 cells.
///
/// ```
/// use gatekit_core::probe::HeatMap;
///
/// let load = vec![vec![1.0, 0.9, 1.1], vec![1.0, 1.1, f64::NAN]];
/// let svg = HeatMap::new("Load", "step", "expert", "load over mean load", load)
///     .with_column_values([0.0, 100.0, 200.0])
///     .with_row_labels(["first", "second"])
///     .with_path("limit", [(0.0, 0.5), (2.0, 0.5)])
///     .to_svg()?;
/// assert!(svg.starts_with("<svg"));
/// # Ok::<(), gatekit_core::probe::PlotError>(())
/// ```
#[derive(Debug, Clone)]
pub struct HeatMap {
    title: String,
    x_label: String,
    y_label: String,
    value_label: String,
    values: Vec<Vec<f64>>,
    row_labels: Option<Vec<String>>,
    column_labels: Option<Vec<String>>,
    range: Option<(f64, f64)>,
    from_bottom: bool,
    size: (u32, u32),
    overlays: Vec<Overlay>,
}

/// What is drawn over the cells, in units of cells.
#[derive(Debug, Clone)]
struct Overlay {
    name: String,
    points: Vec<(f64, f64)>,
    connected: bool,
}

impl HeatMap {
    /// A map of `values`, one inner vector a row, 800 by 480 pixels. Rows and columns are numbered from 0 until they
    /// are given labels; colours span the finite values; `value_label` names what they stand for, with its unit.
    pub fn new(title: &str, x_label: &str, y_label: &str, value_label: &str, values: Vec<Vec<f64>>) -> Self {
        Self {
            title: title.to_string(),
            x_label: x_label.to_string(),
            y_label: y_label.to_string(),
            value_label: value_label.to_string(),
            values,
            row_labels: None,
            column_labels: None,
            range: None,
            from_bottom: false,
            size: (800, 480),
            overlays: Vec::new(),
        }
    }

    /// Names of the rows, first to last; where there are more than fit, some are left out.
    pub fn with_row_labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.row_labels = Some(labels.into_iter().map(Into::into).collect());
        self
    }

    /// Names of the columns, first to last; where there are more than fit, some are left out.
    pub fn with_column_labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.column_labels = Some(labels.into_iter().map(Into::into).collect());
        self
    }

    /// Numbers of the rows, as labels.
    pub fn with_row_values(self, values: impl IntoIterator<Item = f64>) -> Self {
        self.with_row_labels(values.into_iter().map(label))
    }

    /// Numbers of the columns, as labels.
    pub fn with_column_values(self, values: impl IntoIterator<Item = f64>) -> Self {
        self.with_column_labels(values.into_iter().map(label))
    }

    /// The values of the first and the last colour, to compare several maps; values outside get the nearer of the two.
    pub fn with_range(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }

    /// The first row at the bottom, as on the axis of a plot.
    pub fn with_first_row_at_bottom(mut self, from_bottom: bool) -> Self {
        self.from_bottom = from_bottom;
        self
    }

    /// Width and height in pixels.
    pub fn with_size(mut self, width: u32, height: u32) -> Self {
        self.size = (width, height);
        self
    }

    /// A line over the cells through `(column, row)`: whole numbers are middles of cells, so `(0.0, 0.0)` is that of
    /// the first cell. With an empty name it gets no legend. Points that are not finite are left out.
    pub fn with_path(self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.with_overlay(name, points, true)
    }

    /// Marks over the cells, placed as the points of [`with_path`](Self::with_path).
    pub fn with_points(self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.with_overlay(name, points, false)
    }

    fn with_overlay(
        mut self,
        name: &str,
        points: impl IntoIterator<Item = (f64, f64)>,
        connected: bool,
    ) -> Self {
        let finite = points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite());
        // Cells begin half a unit before their middle.
        let points = finite.map(|(x, y)| (x + 0.5, y + 0.5)).collect();
        self.overlays.push(Overlay { name: name.to_string(), points, connected });
        self
    }

    /// Draws to an SVG file.
    ///
    /// # Errors
    ///
    /// As [`to_svg`](Self::to_svg), and when the file cannot be written.
    pub fn write_svg(&self, path: impl AsRef<Path>) -> Result<(), PlotError> {
        Ok(std::fs::write(path, self.to_svg()?)?)
    }

    /// Draws to the text of an SVG file.
    ///
    /// # Errors
    ///
    /// [`PlotError::Empty`] without a finite cell; [`PlotError::Shape`] when rows differ in length, when there is not
    /// one label a row or column, and for a range that does not rise.
    pub fn to_svg(&self) -> Result<String, PlotError> {
        let columns = self.columns()?;
        let range = self.colour_range()?;
        let mut svg = String::new();
        let plot =
            self.draw(&mut svg, columns, &range).map_err(|error| PlotError::Draw(error.to_string()))?;
        // Under everything but the background, which is the first rectangle.
        let background =
            svg.find("<rect").and_then(|start| svg[start..].find("/>").map(|end| start + end + 2));
        let place = background.ok_or_else(|| PlotError::Draw("no background".to_string()))?;
        svg.insert_str(place, &self.cells(columns, &range, &plot));
        Ok(svg)
    }

    /// Number of columns, after all that can be wrong with the shape.
    fn columns(&self) -> Result<usize, PlotError> {
        let columns = self.values.first().map_or(0, Vec::len);
        if let Some(row) = self.values.iter().position(|row| row.len() != columns) {
            let got = self.values[row].len();
            return Err(PlotError::Shape(format!("row {row} has {got} cells, the first {columns}")));
        }
        if !self.values.iter().flatten().any(|value| value.is_finite()) {
            return Err(PlotError::Empty);
        }
        for (labels, count, name) in
            [(&self.row_labels, self.values.len(), "row"), (&self.column_labels, columns, "column")]
        {
            if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != count) {
                return Err(PlotError::Shape(format!("{} {name} labels for {count} {name}s", labels.len())));
            }
        }
        Ok(columns)
    }

    fn colour_range(&self) -> Result<Range<f64>, PlotError> {
        if let Some((low, high)) = self.range {
            return match low.is_finite() && high.is_finite() && low < high {
                true => Ok(low..high),
                false => Err(PlotError::Shape(format!("range {low} to {high} does not rise"))),
            };
        }
        let finite = || self.values.iter().flatten().copied().filter(|value| value.is_finite());
        let (low, high) =
            (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        // One value alone gets the colour in the middle.
        let room = if low < high { 0.0 } else { low.abs().max(1.0) / 2.0 };
        Ok(low - room..high + room)
    }

    /// Draws all but the cells and says where those belong.
    fn draw(
        &self,
        svg: &mut String,
        columns: usize,
        range: &Range<f64>,
    ) -> Result<[Range<i32>; 2], DrawingAreaErrorKind<std::io::Error>> {
        let rows = self.values.len();
        let area = SVGBackend::with_string(svg, self.size).into_drawing_area();
        area.fill(&WHITE)?;
        let area = area.titled(&self.title, (FONT, 24).into_font().color(&TEXT))?;
        let (map, bar) = area.split_horizontally(self.size.0 as i32 - 128);

        let name = |labels: &Option<Vec<String>>, place: f64| match labels {
            Some(labels) => labels.get(place as usize).cloned().unwrap_or_default(),
            None => format!("{}", place as usize),
        };
        let longest = |labels: &Option<Vec<String>>, count: usize| match labels {
            Some(labels) => labels.iter().map(|label| label.chars().count()).max().unwrap_or(0),
            None => count.to_string().len(),
        };
        // Pixels of a letter are about half its height of 16.
        let left = 28 + 8 * longest(&self.row_labels, rows).min(20) as u32;
        let width = f64::from(self.size.0.saturating_sub(150 + left).max(1));
        let height = f64::from(self.size.1.saturating_sub(110).max(1));
        let letters = longest(&self.column_labels, columns).max(1);
        let x = Axis {
            log: false,
            span: 0.0..columns as f64,
            ticks: middles(columns, (9.0 * letters as f64 + 8.0) / width),
        };
        let mut y = Axis { log: false, span: rows as f64..0.0, ticks: middles(rows, 18.0 / height) };
        if self.from_bottom {
            y.span = 0.0..rows as f64;
        }
        let mut chart = ChartBuilder::on(&map)
            .margin(14)
            .x_label_area_size(48)
            .y_label_area_size(left + 14)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(AXIS)
            .label_style((FONT, 16).into_font().color(&TEXT))
            .axis_desc_style((FONT, 18).into_font().color(&TEXT))
            .x_label_formatter(&|place| name(&self.column_labels, *place))
            .y_label_formatter(&|place| name(&self.row_labels, *place))
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .draw()?;
        let mut named = false;
        for (index, overlay) in self.overlays.iter().enumerate() {
            // A light edge lets the line stand out from dark cells as well.
            let style = COLOURS[(index + 1) % COLOURS.len()].stroke_width(3);
            if overlay.connected {
                let line = |style| LineSeries::new(overlay.points.iter().copied(), style);
                chart.draw_series(line(WHITE.stroke_width(6)))?;
                chart.draw_series(line(style))?;
            }
            let mark = |point, size, style: ShapeStyle| Circle::new(point, size, style.filled());
            let (wide, narrow) = if overlay.connected { (0, 0) } else { (6, 4) };
            if wide > 0 {
                chart.draw_series(overlay.points.iter().map(|point| mark(*point, wide, WHITE.into())))?;
            }
            let marks = overlay.points.iter().map(|point| mark(*point, narrow, style));
            let drawn = chart.draw_series(marks)?;
            if !overlay.name.is_empty() {
                drawn
                    .label(&overlay.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
                named = true;
            }
        }
        if named {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .margin(12)
                .legend_area_size(30)
                .label_font((FONT, 16).into_font().color(&TEXT))
                .background_style(WHITE.mix(0.85))
                .draw()?;
        }
        let (across, down) = chart.plotting_area().get_pixel_range();
        self.draw_bar(&bar, range)?;
        area.present()?;
        Ok([across, down])
    }

    /// The colours from the lowest value to the highest.
    fn draw_bar(
        &self,
        area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        range: &Range<f64>,
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let none = Axis { log: false, span: 0.0..1.0, ticks: Vec::new() };
        let Some(y) = Axis::of([range.start, range.end].into_iter(), false, 0.0) else { return Ok(()) };
        let mut chart = ChartBuilder::on(area)
            .margin(14)
            .margin_left(0)
            .margin_bottom(62)
            .set_label_area_size(LabelAreaPosition::Right, 82)
            .build_cartesian_2d(none, y)?;
        let step = (range.end - range.start) / LEVELS as f64;
        chart.draw_series((0..LEVELS).map(|level| {
            // Each up to the end, under those that follow: no seams.
            let low = range.start + level as f64 * step;
            Rectangle::new([(0.0, low), (1.0, range.end)], colour(level).filled())
        }))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(AXIS)
            .y_label_style((FONT, 16).into_font().color(&TEXT))
            .axis_desc_style((FONT, 18).into_font().color(&TEXT))
            .y_label_formatter(&|value| label(*value))
            .y_desc(&self.value_label)
            .draw()
    }

    /// One path a shade, with one stroke a run of cells; strokes have the height of a cell.
    fn cells(&self, columns: usize, range: &Range<f64>, [across, down]: &[Range<i32>; 2]) -> String {
        let rows = self.values.len();
        let mut strokes = vec![String::new(); LEVELS];
        for (row, values) in self.values.iter().enumerate() {
            let row = if self.from_bottom { rows - 1 - row } else { row };
            let levels: Vec<Option<usize>> = values.iter().map(|value| level(*value, range)).collect();
            let mut column = 0;
            for run in levels.chunk_by(|a, b| a == b) {
                if let Some(level) = run[0] {
                    let _ = write!(strokes[level], "M{column} {row}h{}", run.len());
                }
                column += run.len();
            }
        }
        let size = |pixels: &Range<i32>, count: usize| f64::from(pixels.end - pixels.start) / count as f64;
        let (width, height) = (size(across, columns), size(down, rows));
        let mut svg = format!(
            "\n<g transform=\"translate({} {:.3}) scale({width:.4} {height:.4})\" shape-rendering=\"crispEdges\">\n",
            across.start,
            f64::from(down.start) + height / 2.0
        );
        for (level, strokes) in strokes.iter().enumerate().filter(|(_, strokes)| !strokes.is_empty()) {
            let RGBColor(red, green, blue) = colour(level);
            let _ = writeln!(svg, "<path stroke=\"#{red:02X}{green:02X}{blue:02X}\" d=\"{strokes}\"/>");
        }
        svg.push_str("</g>");
        svg
    }
}

/// Middles of so many cells as leave each the share `needed` of the axis, evenly spaced from the first.
fn middles(count: usize, needed: f64) -> Vec<f64> {
    let stride = ((count as f64 * needed).ceil() as usize).max(1);
    (0..count).step_by(stride).map(|index| index as f64 + 0.5).collect()
}

/// The shade of a value; `None` where it is not finite.
fn level(value: f64, range: &Range<f64>) -> Option<usize> {
    let share = (value - range.start) / (range.end - range.start);
    value.is_finite().then(|| ((share.clamp(0.0, 1.0) * LEVELS as f64) as usize).min(LEVELS - 1))
}

fn colour(level: usize) -> RGBColor {
    let place = level as f64 / (LEVELS - 1) as f64 * (SCALE.len() - 1) as f64;
    let below = (place as usize).min(SCALE.len() - 2);
    let mix = |channel: usize| {
        let (low, high) = (f64::from(SCALE[below][channel]), f64::from(SCALE[below + 1][channel]));
        (low + (high - low) * (place - below as f64)).round() as u8
    };
    RGBColor(mix(0), mix(1), mix(2))
}
