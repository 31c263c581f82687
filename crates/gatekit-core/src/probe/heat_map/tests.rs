//! What the files hold, how large they get, and what is refused.

use super::*;

fn map(values: Vec<Vec<f64>>) -> HeatMap {
    HeatMap::new("Load <held out>", "step", "expert", "share (%)", values)
}

#[test]
fn every_label_and_cell_is_in_the_file() {
    let svg = map(vec![vec![0.0, 0.0, 1.0], vec![1.0, f64::NAN, 0.5]])
        .with_row_labels(["first", "second"])
        .with_column_values([10.0, 20.0, 0.1 + 0.2])
        .with_path("limit", [(0.0, 0.0), (2.0, 1.0), (f64::NAN, 0.0)])
        .with_points("best", [(1.0, 1.0)])
        .to_svg()
        .unwrap();
    for text in ["Load &lt;held out&gt;", "step", "expert", "share (%)", "first", "second", "limit", "best"] {
        assert!(svg.contains(text), "{text} is missing");
    }
    for text in [">10<", ">20<", ">0.3<"] {
        assert!(svg.lines().any(|line| line.trim() == text.trim_matches(['<', '>'])), "{text} is missing");
    }
    // Equal neighbours in one stroke, one path a shade, the NaN nowhere.
    let paths: Vec<&str> = svg.lines().filter(|line| line.starts_with("<path")).collect();
    assert_eq!(paths.len(), 3);
    assert_eq!(paths[0], "<path stroke=\"#440154\" d=\"M0 0h2\"/>");
    assert!(paths[1].ends_with("d=\"M2 1h1\"/>"));
    assert_eq!(paths[2], "<path stroke=\"#FDE725\" d=\"M2 0h1M0 1h1\"/>");
    assert!(!svg.contains("NaN"));
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    // Cells lie between the background and everything else.
    let place = |text: &str| svg.find(text).unwrap();
    assert!(place("<rect") < place("<path") && place("</g>") < place("<polyline"));
}

#[test]
fn the_first_row_is_on_top_or_at_the_bottom() {
    let rows = vec![vec![0.0], vec![1.0]];
    let top = map(rows.clone()).to_svg().unwrap();
    assert!(top.contains("<path stroke=\"#440154\" d=\"M0 0h1\"/>"));
    let bottom = map(rows).with_first_row_at_bottom(true).to_svg().unwrap();
    assert!(bottom.contains("<path stroke=\"#440154\" d=\"M0 1h1\"/>"));
}

#[test]
fn the_range_bounds_the_colours() {
    let svg = map(vec![vec![-5.0, 0.0, 1.0, 9.0]]).with_range(0.0, 1.0).to_svg().unwrap();
    assert!(svg.contains("#440154\" d=\"M0 0h2\"") && svg.contains("#FDE725\" d=\"M2 0h2\""));
    let one = map(vec![vec![3.0, 3.0]]).with_size(640, 300).to_svg().unwrap();
    assert!(one.contains("width=\"640\"") && one.contains("d=\"M0 0h2\""));
    assert!(map(vec![vec![f64::MAX, f64::MIN_POSITIVE]]).to_svg().is_ok());
}

#[test]
fn lightness_rises_evenly() {
    // Luma as a stand-in: no step of the scale falls back or jumps.
    let luma = |level| {
        let RGBColor(red, green, blue) = colour(level);
        0.2126 * f64::from(red) + 0.7152 * f64::from(green) + 0.0722 * f64::from(blue)
    };
    for level in 1..LEVELS {
        let step = luma(level) - luma(level - 1);
        assert!((0.0..8.0).contains(&step), "{level}: {step}");
    }
}

#[test]
fn a_large_map_stays_small() {
    // No two neighbours are alike.
    let values = (0..100).map(|row| (0..100).map(|column| ((row * 7 + column * 31) % 64) as f64).collect());
    let svg = map(values.collect()).to_svg().unwrap();
    assert!(svg.len() < 100_000, "{} bytes", svg.len());
    let labels = svg.matches("<text").count();
    assert!(labels < 60, "{labels} labels");
}

#[test]
fn what_cannot_be_drawn_is_an_error() {
    for values in [vec![], vec![vec![]], vec![vec![f64::NAN, f64::INFINITY]]] {
        assert!(matches!(map(values).to_svg(), Err(PlotError::Empty)));
    }
    let reason = |map: HeatMap| match map.to_svg() {
        Err(PlotError::Shape(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(map(vec![vec![1.0], vec![]])), "row 1 has 0 cells, the first 1");
    let two = map(vec![vec![1.0, 2.0]]);
    assert_eq!(reason(two.clone().with_row_labels(["a", "b"])), "2 row labels for 1 rows");
    assert_eq!(reason(two.clone().with_column_values([1.0])), "1 column labels for 2 columns");
    assert_eq!(reason(two.clone().with_range(1.0, 1.0)), "range 1 to 1 does not rise");
    assert!(matches!(two.write_svg("/no/such/folder/plot.svg"), Err(PlotError::Io(_))));
}
