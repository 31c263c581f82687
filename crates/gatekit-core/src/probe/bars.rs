//! Bar plots as SVG files.

use std::path::Path;

use plotters::prelude::*;

use super::plot::{AXIS, Axis, COLOURS, FONT, GRID, PlotError, TEXT, label};

/// Half the width of a bar, as a share of its place.
const HALF_WIDTH: f64 = 0.32;

/// One bar a name, from 0 to its value, with a whisker for the deviation: accuracies of variants, bytes of states.
///
/// Bars whose value is not finite leave their place empty.
///
/// ```
/// use gatekit_core::probe::BarPlot;
///
/// let svg = BarPlot::new("Recall", "accuracy")
///     .with_bar("gated", 0.92, 0.01)
///     .with_bar("plain", 0.61, 0.04)
///     .to_svg()?;
/// assert!(svg.starts_with("<svg"));
/// # Ok::<(), gatekit_core::probe::PlotError>(())
/// ```
#[derive(Debug, Clone)]
pub struct BarPlot {
    title: String,
    y_label: String,
    size: (u32, u32),
    bars: Vec<Bar>,
}

#[derive(Debug, Clone)]
struct Bar {
    name: String,
    value: f64,
    deviation: f64,
}

impl BarPlot {
    /// An empty plot, 800 by 480 pixels.
    pub fn new(title: &str, y_label: &str) -> Self {
        Self { title: title.to_string(), y_label: y_label.to_string(), size: (800, 480), bars: Vec::new() }
    }

    /// Width and height in pixels.
    pub fn with_size(mut self, width: u32, height: u32) -> Self {
        self.size = (width, height);
        self
    }

    /// One more bar, to the right of the others. A deviation of 0 (or one that is not finite) has no whisker.
    pub fn with_bar(mut self, name: &str, value: f64, deviation: f64) -> Self {
        self.bars.push(Bar { name: name.to_string(), value, deviation });
        self
    }

    /// Draws to an SVG file.
    ///
    /// # Errors
    ///
    /// [`PlotError`] when there is no bar to draw or the file cannot be written.
    pub fn write_svg(&self, path: impl AsRef<Path>) -> Result<(), PlotError> {
        Ok(std::fs::write(path, self.to_svg()?)?)
    }

    /// Draws to the text of an SVG file.
    ///
    /// # Errors
    ///
    /// [`PlotError::Empty`] when there is no bar to draw.
    pub fn to_svg(&self) -> Result<String, PlotError> {
        let ends = self.bars.iter().filter(|bar| bar.value.is_finite()).flat_map(Bar::ends);
        let ends: Vec<f64> = ends.collect();
        if ends.is_empty() {
            return Err(PlotError::Empty);
        }
        let mut y = Axis::of(ends.iter().copied().chain([0.0]), false, 0.06).ok_or(PlotError::Empty)?;
        // Bars stand on the axis unless one goes below it.
        if ends.iter().all(|end| *end >= 0.0) {
            y.span.start = 0.0;
            y.ticks.retain(|tick| *tick >= 0.0);
        }
        let places = self.bars.len() as f64;
        let x = Axis {
            log: false,
            span: 0.0..places,
            ticks: (0..self.bars.len()).map(|place| place as f64 + 0.5).collect(),
        };
        let mut svg = String::new();
        self.draw(&mut svg, x, y).map_err(|error| PlotError::Draw(error.to_string()))?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String, x: Axis, y: Axis) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let area = SVGBackend::with_string(svg, self.size).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, (FONT, 24).into_font().color(&TEXT))
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(72)
            .build_cartesian_2d(x, y)?;
        let name = |place: &f64| self.bars.get(*place as usize).map_or(String::new(), |bar| bar.name.clone());
        // Many names need smaller letters to stand side by side.
        let letters = (16.0f64).min(1.6 * f64::from(self.size.0) / self.letters().max(1) as f64).max(8.0);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID)
            .axis_style(AXIS)
            .x_label_style((FONT, letters).into_font().color(&TEXT))
            .y_label_style((FONT, 16).into_font().color(&TEXT))
            .axis_desc_style((FONT, 18).into_font().color(&TEXT))
            .x_label_formatter(&name)
            .y_label_formatter(&|value| label(*value))
            .y_desc(&self.y_label)
            .draw()?;
        for (place, bar) in self.bars.iter().enumerate().filter(|(_, bar)| bar.value.is_finite()) {
            let middle = place as f64 + 0.5;
            let colour = COLOURS[place % COLOURS.len()];
            let corners = [(middle - HALF_WIDTH, 0.0), (middle + HALF_WIDTH, bar.value)];
            chart.draw_series([Rectangle::new(corners, colour.filled())])?;
            if bar.has_whisker() {
                let [low, high] = bar.ends();
                let cap = HALF_WIDTH / 4.0;
                let lines = [
                    vec![(middle, low), (middle, high)],
                    vec![(middle - cap, low), (middle + cap, low)],
                    vec![(middle - cap, high), (middle + cap, high)],
                ];
                chart.draw_series(lines.map(|line| PathElement::new(line, TEXT.stroke_width(2))))?;
            }
        }
        area.present()
    }

    /// Letters that stand side by side below the bars.
    fn letters(&self) -> usize {
        self.bars.len() * self.bars.iter().map(|bar| bar.name.chars().count() + 2).max().unwrap_or(0)
    }
}

impl Bar {
    fn has_whisker(&self) -> bool {
        self.deviation.is_finite() && self.deviation > 0.0
    }

    fn ends(&self) -> [f64; 2] {
        let deviation = if self.has_whisker() { self.deviation } else { 0.0 };
        [self.value - deviation, self.value + deviation]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars(svg: &str) -> usize {
        // The first rectangle is the background.
        svg.lines().filter(|line| line.starts_with("<rect")).count() - 1
    }

    #[test]
    fn every_name_and_bar_is_in_the_file() {
        let svg = BarPlot::new("Recall <held out>", "accuracy")
            .with_bar("gated", 0.9, 0.05)
            .with_bar("plain", 0.6, 0.0)
            .with_bar("broken", f64::NAN, 0.1)
            .to_svg()
            .unwrap();
        for text in ["Recall &lt;held out&gt;", "accuracy", "gated", "plain", "broken"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert_eq!(bars(&svg), 2);
        assert!(!svg.contains("NaN"));
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn bars_of_either_sign_start_at_zero() {
        let svg = BarPlot::new("", "difference")
            .with_bar("a", -0.5, 0.1)
            .with_bar("b", 0.25, 0.1)
            .to_svg()
            .unwrap();
        assert_eq!(bars(&svg), 2);
        let equal = BarPlot::new("", "").with_bar("a", 0.0, 0.0).to_svg();
        assert!(equal.is_ok());
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        assert!(matches!(BarPlot::new("", "").to_svg(), Err(PlotError::Empty)));
        let nothing = BarPlot::new("", "").with_bar("a", f64::INFINITY, 0.0);
        assert!(matches!(nothing.to_svg(), Err(PlotError::Empty)));
        let one = BarPlot::new("", "").with_bar("a", 1.0, 0.0);
        assert!(matches!(one.write_svg("/no/such/folder/plot.svg"), Err(PlotError::Io(_))));
    }
}
