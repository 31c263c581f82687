//! Line plots as SVG files.

use std::ops::Range;
use std::path::Path;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use thiserror::Error;

/// Why a plot could not be drawn.
#[derive(Debug, Error)]
pub enum PlotError {
    /// There is nothing finite to draw (on a logarithmic axis: nothing above 0).
    #[error("plot without a finite point")]
    Empty,
    /// Values and labels do not fit one another.
    #[error("plot whose parts do not fit: {0}")]
    Shape(String),
    /// The drawing library refused.
    #[error("plot could not be drawn: {0}")]
    Draw(String),
    /// The file could not be written.
    #[error("plot could not be written: {0}")]
    Io(#[from] std::io::Error),
}

/// Colours that stay apart for colour-blind readers (Okabe and Ito), the brightest left out.
pub(super) const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
];
pub(super) const TEXT: RGBColor = RGBColor(50, 50, 50);
pub(super) const AXIS: RGBColor = RGBColor(140, 140, 140);
pub(super) const GRID: RGBColor = RGBColor(228, 228, 228);
pub(super) const FONT: &str = "sans-serif";

/// Named lines over a common axis: losses over steps, accuracies over lengths, times over sizes.
///
/// Values that are not finite leave a gap in their line.
///
/// ```
/// use gatekit_core::probe::LinePlot;
///
/// let svg = LinePlot::new("Forward pass", "sequence length", "milliseconds")
///     .with_log_x(true)
///     .with_series("scan", [(256.0, 1.0), (1024.0, 4.0), (4096.0, 16.0)])
///     .with_series("attention", [(256.0, 0.5), (1024.0, 6.0), (4096.0, 90.0)])
///     .to_svg()?;
/// assert!(svg.starts_with("<svg"));
/// # Ok::<(), gatekit_core::probe::PlotError>(())
/// ```
#[derive(Debug, Clone)]
pub struct LinePlot {
    title: String,
    x_label: String,
    y_label: String,
    log_x: bool,
    log_y: bool,
    size: (u32, u32),
    series: Vec<(String, Vec<(f64, f64)>)>,
}

impl LinePlot {
    /// An empty plot, 800 by 480 pixels, with linear axes.
    pub fn new(title: &str, x_label: &str, y_label: &str) -> Self {
        Self {
            title: title.to_string(),
            x_label: x_label.to_string(),
            y_label: y_label.to_string(),
            log_x: false,
            log_y: false,
            size: (800, 480),
            series: Vec::new(),
        }
    }

    /// A logarithmic horizontal axis; points at 0 and below are left out.
    pub fn with_log_x(mut self, log_x: bool) -> Self {
        self.log_x = log_x;
        self
    }

    /// A logarithmic vertical axis; points at 0 and below are left out.
    pub fn with_log_y(mut self, log_y: bool) -> Self {
        self.log_y = log_y;
        self
    }

    /// Width and height in pixels.
    pub fn with_size(mut self, width: u32, height: u32) -> Self {
        self.size = (width, height);
        self
    }

    /// One more line, through `(x, y)` in the order given. With an empty name it gets no legend.
    pub fn with_series(mut self, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        self.series.push((name.to_string(), points.into_iter().collect()));
        self
    }

    /// Draws to an SVG file.
    ///
    /// # Errors
    ///
    /// [`PlotError`] when there is no point to draw or the file cannot be written.
    pub fn write_svg(&self, path: impl AsRef<Path>) -> Result<(), PlotError> {
        Ok(std::fs::write(path, self.to_svg()?)?)
    }

    /// Draws to the text of an SVG file.
    ///
    /// # Errors
    ///
    /// [`PlotError::Empty`] when there is no point to draw.
    pub fn to_svg(&self) -> Result<String, PlotError> {
        let points =
            || self.series.iter().flat_map(|(_, points)| points).filter(|point| self.drawable(point));
        let x = Axis::of(points().map(|point| point.0), self.log_x, 0.01).ok_or(PlotError::Empty)?;
        let y = Axis::of(points().map(|point| point.1), self.log_y, 0.06).ok_or(PlotError::Empty)?;
        let mut svg = String::new();
        self.draw(&mut svg, &x, &y).map_err(|error| PlotError::Draw(error.to_string()))?;
        Ok(svg)
    }

    fn drawable(&self, (x, y): &(f64, f64)) -> bool {
        let fits = |value: f64, log: bool| value.is_finite() && (!log || value > 0.0);
        fits(*x, self.log_x) && fits(*y, self.log_y)
    }

    fn draw(&self, svg: &mut String, x: &Axis, y: &Axis) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let area = SVGBackend::with_string(svg, self.size).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, (FONT, 24).into_font().color(&TEXT))
            .margin(14)
            .x_label_area_size(48)
            .y_label_area_size(64)
            .build_cartesian_2d(x.clone(), y.clone())?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .axis_style(AXIS)
            .label_style((FONT, 16).into_font().color(&TEXT))
            .axis_desc_style((FONT, 18).into_font().color(&TEXT))
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .draw()?;
        for (index, (name, points)) in self.series.iter().enumerate() {
            let style = COLOURS[index % COLOURS.len()].stroke_width(2);
            let mut named = false;
            for run in points.split(|point| !self.drawable(point)).filter(|run| !run.is_empty()) {
                // Few points are marked; and a lone one would be an invisible line.
                if points.len() <= 24 || run.len() == 1 {
                    chart.draw_series(run.iter().map(|point| Circle::new(*point, 3, style.filled())))?;
                }
                let line = chart.draw_series(LineSeries::new(run.iter().copied(), style))?;
                if !named && !name.is_empty() {
                    line.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
                    named = true;
                }
            }
        }
        if self
            .series
            .iter()
            .any(|(name, points)| !name.is_empty() && points.iter().any(|p| self.drawable(p)))
        {
            chart
                .configure_series_labels()
                .position(self.emptiest_corner(x, y))
                .margin(12)
                .legend_area_size(30)
                .label_font((FONT, 16).into_font().color(&TEXT))
                .background_style(WHITE.mix(0.85))
                .border_style(GRID)
                .draw()?;
        }
        area.present()
    }

    /// The corner with the fewest points, so that the legend hides little.
    fn emptiest_corner(&self, x: &Axis, y: &Axis) -> SeriesLabelPosition {
        let [mut upper_left, mut upper_right, mut lower_left, mut lower_right] = [0.0; 4];
        for (_, points) in &self.series {
            let drawable: Vec<_> = points.iter().filter(|point| self.drawable(point)).collect();
            for point in &drawable {
                let corner = match (x.share(point.0) > 0.55, y.share(point.1) > 0.5) {
                    (false, true) => &mut upper_left,
                    (true, true) => &mut upper_right,
                    (false, false) => &mut lower_left,
                    (true, false) => &mut lower_right,
                };
                // Every line counts alike, however many points it has.
                *corner += 1.0 / drawable.len() as f64;
            }
        }
        let corners = [
            (upper_right, SeriesLabelPosition::UpperRight),
            (upper_left, SeriesLabelPosition::UpperLeft),
            (lower_right, SeriesLabelPosition::LowerRight),
            (lower_left, SeriesLabelPosition::LowerLeft),
        ];
        let [first, rest @ ..] = corners;
        rest.into_iter().fold(first, |best, corner| if corner.0 < best.0 { corner } else { best }).1
    }
}

/// An axis: its ends and labelled values, laid out linearly or by logarithms.
#[derive(Clone)]
pub(super) struct Axis {
    pub(super) log: bool,
    /// In layout coordinates: values, or their decimal logarithms.
    pub(super) span: Range<f64>,
    pub(super) ticks: Vec<f64>,
}

impl Axis {
    /// From the lowest to the highest value, wider by the share `margin` on both sides. `None` without values.
    pub(super) fn of(values: impl Iterator<Item = f64>, log: bool, margin: f64) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let mut axis = Self { log, span: 0.0..0.0, ticks: Vec::new() };
        let (low, high) = (axis.place(*values.first()?), axis.place(*values.last()?));
        let room = if low < high { (high - low) * margin } else { low.abs().max(1.0) / 2.0 };
        axis.span = low - room..high + room;
        axis.ticks = match log {
            // Sizes are usually measured at a few points, often powers of two: label those.
            true if values.len() <= 8 && margin < 0.05 => values,
            true => axis.logarithmic_ticks(),
            false => axis.linear_ticks(),
        };
        Some(axis)
    }

    /// A value in layout coordinates.
    fn place(&self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// 0 at the axis' beginning, 1 at its end.
    fn share(&self, value: f64) -> f64 {
        (self.place(value) - self.span.start) / (self.span.end - self.span.start)
    }

    /// At most nine round numbers: multiples of 1, 2 or 5 times a power of ten.
    fn linear_ticks(&self) -> Vec<f64> {
        let rough = (self.span.end - self.span.start) / 8.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        // A multiple that rounding puts just outside an end belongs to it.
        let first = (self.span.start / step - 1e-9).ceil() as i64;
        let last = (self.span.end / step + 1e-9).floor() as i64;
        (first..=last).map(|index| index as f64 * step).collect()
    }

    /// Powers of ten, and 2 and 5 times them where there are few.
    fn logarithmic_ticks(&self) -> Vec<f64> {
        let (first, last) = (self.span.start.floor() as i64, self.span.end.ceil() as i64);
        let digits: &[f64] = if last - first <= 3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let stride = ((last - first) / 9 + 1) as usize;
        (first..=last)
            .step_by(stride)
            .flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power as i32)))
            .filter(|value| self.span.contains(&self.place(*value)))
            .collect()
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (self.share(*value) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // A light line between the labelled ones would only add ink.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        let value = |place: f64| if self.log { 10f64.powf(place) } else { place };
        value(self.span.start)..value(self.span.end)
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        label(*value)
    }
}

/// A number on an axis: short, without a tail of rounding errors.
pub(super) fn label(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude < 1e-12 {
        return "0".to_string();
    }
    if !(0.999e-3..1e6).contains(&magnitude) {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let decimals = match magnitude {
        100.0.. => 1,
        1.0.. => 3,
        _ => 5,
    };
    let text = format!("{value:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn falling() -> Vec<(f64, f64)> {
        (1..50).map(|step| (step as f64, 3.0 / step as f64)).collect()
    }

    #[test]
    fn every_label_and_line_is_in_the_file() {
        let svg = LinePlot::new("Loss <held out>", "step", "bits per byte")
            .with_series("GLA", falling())
            .with_series("softmax", falling().into_iter().map(|(x, y)| (x, y * 1.2)))
            .to_svg()
            .unwrap();
        for text in ["Loss &lt;held out&gt;", "step", "bits per byte", "GLA", "softmax"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        // Each line once in the plot and once in the legend, in its own colour.
        for colour in ["#0072B2", "#D55E00"] {
            let lines =
                svg.lines().filter(|line| line.starts_with("<polyline") && line.contains(colour)).count();
            assert_eq!(lines, 2, "{colour}");
        }
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn values_that_are_not_finite_leave_a_gap() {
        let points = [(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, f64::INFINITY), (5.0, 2.0)];
        let svg = LinePlot::new("", "x", "y").with_series("gappy", points).to_svg().unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        let circles = svg.lines().filter(|line| line.starts_with("<circle")).count();
        assert_eq!(circles, 4);
    }

    #[test]
    fn logarithmic_axes_leave_out_what_they_cannot_show() {
        for (log_x, log_y) in [(true, false), (false, true), (true, true)] {
            let svg = LinePlot::new("Time", "length", "ms")
                .with_log_x(log_x)
                .with_log_y(log_y)
                .with_size(640, 400)
                .with_series("scan", [(0.0, 0.0), (128.0, 0.5), (1024.0, 4.0), (8192.0, 40.0)])
                .to_svg()
                .unwrap();
            assert!(svg.contains("width=\"640\"") && svg.contains("height=\"400\""));
            assert_eq!(svg.lines().filter(|line| line.starts_with("<circle")).count(), 3);
        }
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        assert!(matches!(LinePlot::new("", "", "").to_svg(), Err(PlotError::Empty)));
        let nothing =
            LinePlot::new("", "", "").with_log_x(true).with_series("a", [(0.0, 1.0), (1.0, f64::NAN)]);
        assert!(matches!(nothing.to_svg(), Err(PlotError::Empty)));
        let one = LinePlot::new("", "", "").with_series("a", [(2.0, 3.0)]);
        assert!(matches!(one.write_svg("/no/such/folder/plot.svg"), Err(PlotError::Io(_))));
    }

    #[test]
    fn the_legend_goes_where_no_line_is() {
        let corner = |points: Vec<(f64, f64)>| {
            let plot = LinePlot::new("", "", "").with_series("a", points);
            let axis = |end| Axis { log: false, span: 0.0..end, ticks: Vec::new() };
            plot.emptiest_corner(&axis(50.0), &axis(3.0))
        };
        assert!(matches!(corner(falling()), SeriesLabelPosition::UpperRight));
        let rising = falling().into_iter().map(|(x, y)| (x, 3.0 - y)).collect();
        assert!(matches!(corner(rising), SeriesLabelPosition::LowerRight));
    }

    #[test]
    fn ticks_are_round_numbers_within_the_span() {
        let ticks = |values: &[f64], log, margin| {
            let axis = Axis::of(values.iter().copied(), log, margin).unwrap();
            axis.ticks.iter().map(|value| label(*value)).collect::<Vec<_>>()
        };
        assert_eq!(ticks(&[0.0, 1990.0], false, 0.0), ["0", "500", "1000", "1500"]);
        assert_eq!(ticks(&[-0.3, 0.31], false, 0.0), ["-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"]);
        assert_eq!(ticks(&[7.0], false, 0.0).first().map(String::as_str), Some("4"));
        assert_eq!(ticks(&[256.0, 512.0, 512.0, 8192.0], true, 0.01), ["256", "512", "8192"]);
        assert_eq!(ticks(&[0.4, 30.0], true, 0.06), ["0.5", "1", "2", "5", "10", "20"]);
        assert_eq!(ticks(&[1e-3, 1e3], true, 0.06), ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]);
    }

    #[test]
    fn labels_are_short() {
        let expected = [
            (0.0, "0"),
            (1e-17, "0"),
            (0.30000000000000004, "0.3"),
            (2.5, "2.5"),
            (1000.0, "1000"),
            (-12.0, "-12"),
            (2e6, "2e6"),
            (1.5e-7, "1.5e-7"),
            (100.0, "100"),
        ];
        for (value, text) in expected {
            assert_eq!(label(value), text);
        }
    }
}
