//! A line chart with logarithmic axes, as SVG.

/// A line, from left to right.
pub struct Line {
    /// The label at the right, at the height of the last point.
    pub name: String,
    /// All coordinates are greater than 0.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 8] =
    ["#c0392b", "#d68910", "#2471a3", "#1e8449", "#7d3c98", "#616a6b", "#a04000", "#117a65"];

/// Draws `lines`: nanoseconds on the y axis, records on the x axis.
pub fn chart(title: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) =
            values.fold((f64::MAX, 1.0f64), |(low, high), value| (low.min(value), high.max(value)));
        (low.log10().floor(), high.log10().ceil())
    };
    let (left, right) = range(&mut all().map(|point| point.0));
    let (bottom, top) = range(&mut all().map(|point| point.1));
    let x = |value: f64| {
        LEFT + (value.log10() - left) / (right - left).max(1.0) * (WIDTH - LEFT - RIGHT)
    };
    let y = |value: f64| {
        let part = (value.log10() - bottom) / (top - bottom).max(1.0);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    };

    let mut svg = String::new();
    let mut add = |line: String| {
        svg.push_str(&line);
        svg.push('\n');
    };
    add(format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    ));
    add(format!(r#"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#));
    add(format!(r#"<text x="{LEFT}" y="22" font-size="15">{title}</text>"#));
    for power in bottom as i32..=top as i32 {
        let at = y(10f64.powi(power));
        let end = WIDTH - RIGHT;
        add(format!(r##"<path d="M{LEFT} {at:.1}H{end}" stroke="#ddd"/>"##));
        let (x, at, label) = (LEFT - 8.0, at + 4.0, time(power));
        add(format!(r#"<text x="{x}" y="{at:.1}" text-anchor="end">{label}</text>"#));
    }
    for power in left as i32..=right as i32 {
        let at = x(10f64.powi(power));
        let (low, label) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 18.0);
        add(format!(r##"<path d="M{at:.1} {TOP}V{low}" stroke="#ddd"/>"##));
        add(format!(
            r#"<text x="{at:.1}" y="{label}" text-anchor="middle">10<tspan dy="-5" font-size="9">{power}</tspan></text>"#
        ));
    }
    let (middle, low) = ((WIDTH + LEFT - RIGHT) / 2.0, HEIGHT - 10.0);
    add(format!(r#"<text x="{middle}" y="{low}" text-anchor="middle">records in the list</text>"#));

    let mut labels = Vec::new();
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<_> = line
            .points
            .iter()
            .map(|point| format!("{:.1} {:.1}", x(point.0), y(point.1)))
            .collect();
        let path = path.join("L");
        add(format!(r#"<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#));
        for point in &line.points {
            let (x, y) = (x(point.0), y(point.1));
            add(format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#));
        }
        if let Some(last) = line.points.last() {
            labels.push((y(last.1) + 4.0, colour, &line.name));
        }
    }
    // From top to bottom, so that labels do not overlap.
    labels.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut free = 0.0f64;
    let x = WIDTH - RIGHT + 8.0;
    for (y, colour, name) in labels {
        let y = y.max(free);
        free = y + 14.0;
        add(format!(r#"<text x="{x:.1}" y="{y:.1}" fill="{colour}">{name}</text>"#));
    }
    add("</svg>".to_owned());
    svg
}

/// 10 to the `power` nanoseconds.
fn time(power: i32) -> String {
    let (unit, zeros) = match power {
        ..3 => ("ns", power),
        3..6 => ("µs", power - 3),
        6..9 => ("ms", power - 6),
        9.. => ("s", power - 9),
    };
    format!("{} {unit}", 10f64.powi(zeros))
}
