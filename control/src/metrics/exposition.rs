//! The text format that Prometheus reads, version 0.0.4.

use std::fmt::{Display, Write};

/// What kind of metric a family is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A page of metrics in the making.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// The content type of the page.
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// A metric of one value.
    pub fn single(&mut self, kind: Kind, name: &str, help: &str, value: impl Display) {
        self.labelled(kind, name, help, "", [("", value)]);
    }

    /// A metric with one label, by its values.
    pub fn labelled<'v, V: Display>(
        &mut self,
        kind: Kind,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, V)>,
    ) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.head(name, help, kind);
        for (of, value) in values {
            if label.is_empty() {
                self.line(format_args!("{name} {value}"));
            } else {
                self.line(format_args!("{name}{{{label}=\"{of}\"}} {value}"));
            }
        }
    }

    /// A histogram.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let mut total = 0;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            total += count;
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {total}"));
        }
        let (count, sum) = (histogram.counts.iter().sum::<u64>(), histogram.sum);
        self.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {count}"));
        self.line(format_args!("{name}_sum {sum}"));
        self.line(format_args!("{name}_count {count}"));
    }

    /// The page.
    pub fn finish(self) -> String {
        self.0
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// Counts of observations by size.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper bounds, inclusive, growing.
    bounds: Vec<f64>,
    /// One per bound, and one for what is above the last.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// With these upper bounds.
    pub fn new(bounds: Vec<f64>) -> Self {
        let counts = vec![0; bounds.len() + 1];
        Self {
            bounds,
            counts,
            sum: 0.0,
        }
    }

    /// One with these bounds that has observed nothing.
    pub fn emptied(&self) -> Self {
        Self::new(self.bounds.clone())
    }

    /// Adds an observation.
    pub fn observe(&mut self, value: f64) {
        let position = self.bounds.partition_point(|bound| *bound < value);
        self.counts[position] += 1;
        self.sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up_and_bounds_are_inclusive() {
        let mut histogram = Histogram::new(vec![0.5, 1.0]);
        for value in [0.25, 0.5, 0.75, 8.0] {
            histogram.observe(value);
        }
        let mut page = Exposition::default();
        page.histogram("h", "help", &histogram);
        let expected = "# HELP h help\n# TYPE h histogram\nh_bucket{le=\"0.5\"} 2\nh_bucket{le=\"1\"} 3\n\
                        h_bucket{le=\"+Inf\"} 4\nh_sum 9.5\nh_count 4\n";
        assert_eq!(page.finish(), expected);
    }

    #[test]
    fn counters_and_gauges_with_and_without_label() {
        let mut page = Exposition::default();
        page.single(Kind::Gauge, "g", "help", 3);
        page.labelled(Kind::Counter, "c", "help", "code", [("200", 1), ("503", 0)]);
        let expected = "# HELP g help\n# TYPE g gauge\ng 3\n# HELP c help\n# TYPE c counter\n\
                        c{code=\"200\"} 1\nc{code=\"503\"} 0\n";
        assert_eq!(page.finish(), expected);
    }
}
