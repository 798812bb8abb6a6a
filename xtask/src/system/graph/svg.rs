//! A few shapes of SVG, written as text.

use std::fmt::Write as _;

/// A document being written.
#[derive(Debug)]
pub struct Svg {
    /// Its width.
    pub width: f64,
    height: f64,
    body: String,
}

/// How a text hangs on its point.
#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    /// The point is its start.
    Start,
    /// The point is its end.
    End,
}

/// How a text looks.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    size: f64,
    colour: &'static str,
    bold: bool,
    anchor: Anchor,
}

impl Style {
    /// Plain text.
    pub fn new(size: f64, colour: &'static str) -> Style {
        Style { size, colour, bold: false, anchor: Anchor::Start }
    }

    /// The same in bold.
    pub fn bold(mut self) -> Style {
        self.bold = true;
        self
    }

    /// The same, hung elsewhere.
    pub fn anchored(mut self, anchor: Anchor) -> Style {
        self.anchor = anchor;
        self
    }
}

impl Svg {
    /// An empty document.
    pub fn new(width: f64, height: f64) -> Svg {
        Svg { width, height, body: String::new() }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(line);
        self.body.push('\n');
    }

    /// A rectangle with rounded corners.
    #[allow(clippy::too_many_arguments, reason = "four numbers are one rectangle")]
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, round: f64, fill: &str, stroke: Option<&str>) {
        let stroke = stroke.map(|stroke| format!(" stroke=\"{stroke}\"")).unwrap_or_default();
        self.line(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"{round}\" fill=\"{fill}\"{stroke}/>"
        ));
    }

    /// A line of text on its base line.
    pub fn text(&mut self, x: f64, y: f64, text: &str, style: Style) {
        let weight = if style.bold { " font-weight=\"bold\"" } else { "" };
        let anchor = match style.anchor {
            Anchor::Start => "",
            Anchor::End => " text-anchor=\"end\"",
        };
        let (size, colour, text) = (style.size, style.colour, escape(text));
        self.line(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{colour}\"{weight}{anchor}>{text}</text>"
        ));
    }

    /// A smooth line through `points` with a head at its end. Between two points it leaves and arrives vertically,
    /// unless they are on one height.
    pub fn arrow(&mut self, points: &[(f64, f64)], colour: &str, dashed: bool) {
        let Some(((x, y), rest)) = points.split_first() else {
            return;
        };
        let mut path = format!("M{x:.1} {y:.1}");
        let (mut x, mut y) = (*x, *y);
        for (to_x, to_y) in rest {
            if (to_x - x).abs() < 0.5 || (to_y - y).abs() < 0.5 {
                let _ = write!(path, " L{to_x:.1} {to_y:.1}");
            } else {
                let middle = (y + to_y) / 2.0;
                let _ = write!(path, " C{x:.1} {middle:.1} {to_x:.1} {middle:.1} {to_x:.1} {to_y:.1}");
            }
            (x, y) = (*to_x, *to_y);
        }
        let dash = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        let head = if dashed { "signal" } else { "call" };
        self.line(format_args!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"{dash} marker-end=\"url(#{head})\"/>"
        ));
    }

    /// The whole document; `title` is what screen readers say.
    pub fn finish(self, title: &str) -> String {
        let (width, height) = (self.width, self.height);
        let head = |id: &str, colour: &str| {
            format!(
                "<marker id=\"{id}\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"7\" markerHeight=\"7\" \
                 orient=\"auto\"><path d=\"M0 0L10 5L0 10z\" fill=\"{colour}\"/></marker>"
            )
        };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"DejaVu Sans, Verdana, sans-serif\">\n\
             <title>{}</title>\n<defs>{}{}</defs>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{}</svg>\n",
            escape(title),
            head("call", super::CALL),
            head("signal", super::SIGNAL),
            self.body
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
