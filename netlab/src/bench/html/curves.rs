//! Medians over the number of Services, as curves. Each has its name at its end, in its colour.

use super::{short, spoken, unit};
use crate::bench::report::{Group, Row};
use std::fmt::Write;

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 216.0;
const LEFT: f64 = 52.0;
/// Room for the numbers of Services and the name of their axis.
const BELOW: f64 = 44.0;
const ABOVE: f64 = 10.0;
/// Room for the longest label, and for the line that leads to it.
const RIGHT: f64 = 134.0;
/// From the baseline of a text up to its middle.
const MIDDLE: f64 = 4.0;
/// From one label to the next, in the larger letters of a narrow page.
const LINE: f64 = 14.0;

/// Medians over the number of Services, on a scale from nothing to the most of them: it has no room for what one round found.
pub(super) fn curves(groups: &[&Group<'_>]) -> String {
    let mut rows: Vec<&Row> = groups.iter().flat_map(|group| &group.0).copied().collect();
    rows.sort_by_key(|row| row.key.services);
    let [Some(first), Some(last)] = [rows.first(), rows.last()] else {
        return String::new();
    };
    let largest = last.key.services;
    let mut text = format!(
        "<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{} in {}, {}: medians with {} to {largest} Services'>\n",
        spoken(first.metric),
        unit(first),
        first.key.placement,
        first.key.services,
    );
    let medians = rows.iter().map(|row| row.median);
    let most = medians.fold(f64::MIN_POSITIVE, f64::max);
    let scale = Scale { most, largest };
    text += &axes(&scale, &rows);
    let curves = by_name(&scale, &rows);
    let ends: Vec<f64> = curves.iter().map(Curve::end).map(|[_, y]| y).collect();
    for (curve, label) in curves.iter().zip(apart(&ends)) {
        text += &curve.draw(label);
    }
    text + "</svg>\n"
}

/// Where figures lie in a plot: the number of Services grows by factors.
struct Scale {
    most: f64,
    /// Of Services.
    largest: u32,
}

impl Scale {
    fn x(&self, services: u32) -> f64 {
        let decades = |services: u32| f64::from(services).log10();
        let whole = decades(self.largest).max(f64::MIN_POSITIVE);
        LEFT + (WIDTH - LEFT - RIGHT) * decades(services) / whole
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BELOW - (HEIGHT - BELOW - ABOVE) * value / self.most
    }
}

/// Lines with values, and numbers of Services.
fn axes(scale: &Scale, rows: &[&Row]) -> String {
    let mut text = String::new();
    for share in [0.0, 0.5, 1.0] {
        let at = scale.y(scale.most * share);
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "<path class=grid d='M{LEFT} {at:.1}H{}'/><text x='{}' y='{:.1}' text-anchor=end>{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + MIDDLE,
            short(scale.most * share)
        );
    }
    let mut sizes: Vec<u32> = rows.iter().map(|row| row.key.services).collect();
    sizes.dedup();
    let below = HEIGHT - BELOW + 18.0;
    for services in sizes {
        let _ = writeln!(
            text,
            "<text x='{:.1}' y='{below}' text-anchor=middle>{services}</text>",
            scale.x(services),
        );
    }
    let _ = writeln!(
        text,
        "<text x='{:.1}' y='{}' text-anchor=middle>Services (logarithmic)</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 6.0
    );
    text
}

/// A curve: whose it is, and its points from the left.
struct Curve<'a> {
    last: &'a Row,
    points: Vec<[f64; 2]>,
}

/// The curves of all names, the one that ends highest first.
fn by_name<'a>(scale: &Scale, rows: &[&'a Row]) -> Vec<Curve<'a>> {
    let mut curves: Vec<Curve<'a>> = Vec::new();
    for row in rows {
        let point = [scale.x(row.key.services), scale.y(row.median)];
        match curves
            .iter_mut()
            .find(|curve| curve.last.who() == row.who())
        {
            Some(curve) => {
                curve.last = row;
                curve.points.push(point);
            }
            None => curves.push(Curve {
                last: row,
                points: vec![point],
            }),
        }
    }
    curves.sort_by(|one, other| one.end()[1].total_cmp(&other.end()[1]));
    curves
}

impl Curve<'_> {
    fn end(&self) -> [f64; 2] {
        self.points.last().copied().unwrap_or_default()
    }

    /// The line, its points, and its name at the height `label`. Between its points nothing was measured.
    fn draw(&self, label: f64) -> String {
        let line: Vec<String> = self
            .points
            .iter()
            .map(|[x, y]| format!("{x:.1},{y:.1}"))
            .collect();
        let dots: String = self
            .points
            .iter()
            .map(|[x, y]| format!("<circle cx='{x:.1}' cy='{y:.1}' r=2.5 />"))
            .collect();
        let name = self.last.who();
        let dataplane = self.last.key.dataplane;
        let dashes = if dataplane == name { "" } else { " middle" };
        let [x, y] = self.end();
        let text_begins = WIDTH - RIGHT + 20.0;
        format!(
            "<g class='{dataplane}{dashes}'><polyline points='{}'/>{dots}\
             <path class=leader d='M{:.1} {y:.1}L{:.1} {label:.1}'/><text x='{text_begins}' y='{:.1}'>{name}</text></g>\n",
            line.join(" "),
            x + 4.0,
            text_begins - 3.0,
            label + MIDDLE,
        )
    }
}

/// Places as near as may be to those that are wanted, from the top, in the same order, with a line's height between each two
/// and none outside of the plot.
fn apart(wanted: &[f64]) -> Vec<f64> {
    // Labels that touch move together, around the mean of what they want.
    let mut heaps: Vec<Heap> = Vec::new();
    for place in wanted {
        let mut heap = Heap {
            tops: *place,
            labels: 1,
        };
        while let Some(above) = heaps.pop_if(|above| above.end() > heap.top()) {
            heap = above.with(&heap);
        }
        heaps.push(heap);
    }
    let places = heaps.iter().flat_map(|heap| {
        let lines = (0..heap.labels).map(f64::from);
        lines.map(move |line| heap.top() + LINE * line)
    });
    places.collect()
}

/// Labels that touch.
struct Heap {
    /// Where the first of them would have to be for each to be where it is wanted, added up.
    tops: f64,
    labels: u32,
}

impl Heap {
    /// The middle of the first one.
    fn top(&self) -> f64 {
        let lowest = HEIGHT - BELOW - LINE * f64::from(self.labels - 1);
        let mean = self.tops / f64::from(self.labels);
        mean.min(lowest).max(ABOVE)
    }

    /// The middle of the first place that is free below them.
    fn end(&self) -> f64 {
        self.top() + LINE * f64::from(self.labels)
    }

    fn with(self, below: &Self) -> Self {
        let moved = LINE * f64::from(self.labels * below.labels);
        Self {
            tops: self.tops + below.tops - moved,
            labels: self.labels + below.labels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_the_order_of_their_curves_and_lie_on_no_other() {
        assert_eq!(apart(&[20.0, 60.0, 90.0]), [20.0, 60.0, 90.0]);
        assert_eq!(apart(&[50.0, 50.0, 53.0]), [37.0, 51.0, 65.0]);
        let bottom = HEIGHT - BELOW;
        assert_eq!(apart(&[bottom; 3]), [bottom - 28.0, bottom - 14.0, bottom]);
        let many: Vec<f64> = (0..9).map(|place| f64::from(place) * 3.0).collect();
        let places = apart(&many);
        assert!(places[0] >= ABOVE && places.is_sorted(), "{places:?}");
        let mut spaces = places.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(spaces.all(|space| space > LINE - 0.01), "{places:?}");
    }
}
