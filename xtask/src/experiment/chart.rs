//! Plots as SVG: groups of bars, which is all that the experiments need.

use std::fmt::Write;

/// A plot: for each label one bar of each series.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What is shown.
    pub title: String,
    /// Unit of the values.
    pub unit: String,
    /// Names of the groups.
    pub labels: Vec<String>,
    /// Name and values of each series.
    pub series: Vec<(String, Vec<f64>)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 90.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 6] = ["#3b6ea5", "#d9822b", "#5a9a5a", "#a5483b", "#7a5aa0", "#808080"];

/// A number as people read it.
pub fn shown(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        let digits = format!("{}", value.abs() as u64);
        let mut text = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        if value < 0.0 { format!("-{text}") } else { text }
    } else {
        format!("{value:.4}")
    }
}

/// Text that stands in SVG or HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Chart {
    /// The plot.
    pub fn svg(&self) -> String {
        let most = self.series.iter().flat_map(|(_, values)| values).copied().fold(0.0_f64, f64::max);
        let most = if most > 0.0 { most * 1.08 } else { 1.0 };
        let (inner, floor) = (WIDTH - LEFT - 20.0, HEIGHT - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n<text x=\"{LEFT}\" y=\"16\" font-size=\"14\">{}</text>\n",
            escaped(&self.title)
        );
        for line in 0..=4 {
            let value = most * f64::from(line) / 4.0;
            let y = floor - (floor - TOP) * f64::from(line) / 4.0;
            let text = if most > 20.0 { shown(value.round()) } else { format!("{value:.3}") };
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                WIDTH - 20.0,
                LEFT - 6.0,
                y + 4.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{:.1}\" transform=\"rotate(-90 12 {:.1})\" text-anchor=\"middle\">{}</text>",
            HEIGHT / 2.0,
            HEIGHT / 2.0,
            escaped(&self.unit)
        );
        let group = inner / self.labels.len().max(1) as f64;
        let bar = group * 0.8 / self.series.len().max(1) as f64;
        for (index, label) in self.labels.iter().enumerate() {
            let at = LEFT + group * (index as f64 + 0.1);
            for (number, (name, values)) in self.series.iter().enumerate() {
                let value = values.get(index).copied().unwrap_or(0.0);
                let height = (floor - TOP) * value.max(0.0) / most;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{}\"><title>{} {}: {}</title></rect>",
                    at + bar * number as f64,
                    floor - height,
                    bar.max(1.0),
                    COLOURS[number % COLOURS.len()],
                    escaped(label),
                    escaped(name),
                    shown(value)
                );
            }
            // Few labels stand level, many are thinned out.
            if self.labels.len() <= 12 || index.is_multiple_of(5) {
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    at + group * 0.4,
                    floor + 16.0,
                    escaped(label)
                );
            }
        }
        for (number, (name, _)) in self.series.iter().enumerate() {
            let x = LEFT + 130.0 * number as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{}</text>",
                HEIGHT - 22.0,
                COLOURS[number % COLOURS.len()],
                x + 15.0,
                HEIGHT - 13.0,
                escaped(name)
            );
        }
        svg + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_their_values() {
        let chart = Chart {
            title: "a < b".into(),
            unit: "%".into(),
            labels: vec!["x".into(), "y".into()],
            series: vec![("s".into(), vec![1.0, 2.0])],
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b") && svg.matches("<rect").count() == 3);
        let heights: Vec<f64> =
            svg.split("height=\"").skip(1).filter_map(|part| part.split('"').next()?.parse().ok()).collect();
        assert!((heights[1] / heights[0] - 2.0).abs() < 0.01, "{heights:?}");
    }

    #[test]
    fn numbers_have_groups_of_three() {
        assert_eq!((shown(1234567.0), shown(0.5), shown(-12.0)), ("1,234,567".into(), "0.5000".into(), "-12".into()));
    }
}
