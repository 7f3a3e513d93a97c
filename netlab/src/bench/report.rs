//! The figures of a run: medians and spread, as JSON, as text with bars, as a page.

use super::Benchmark;
use super::load::Figures;
use super::machine::Machine;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;

/// One metric of one subject.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    services: u32,
    dataplane: &'static str,
    placement: &'static str,
    metric: &'static str,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    runs: usize,
}

impl Row {
    /// The rows of one subject, a metric each.
    pub(super) fn of(
        services: u32,
        dataplane: &'static str,
        placement: &'static str,
        rounds: &[Figures],
    ) -> Vec<Self> {
        let metrics = rounds.first().into_iter().flatten();
        let row = |(nth, (metric, unit, _)): (usize, &(&'static str, &'static str, f64))| {
            let mut values: Vec<f64> = rounds.iter().map(|figures| figures[nth].2).collect();
            values.sort_by(f64::total_cmp);
            let at = |nth: usize| values.get(nth).copied().unwrap_or(0.0);
            Self {
                services,
                dataplane,
                placement,
                metric,
                unit,
                median: at(values.len() / 2),
                min: at(0),
                max: at(values.len().saturating_sub(1)),
                runs: values.len(),
            }
        };
        metrics.enumerate().map(row).collect()
    }

    fn is_beside(&self, other: &Self) -> bool {
        (self.services, self.placement, self.metric)
            == (other.services, other.placement, other.metric)
    }
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) benchmark: Benchmark,
    pub(super) milliseconds: u32,
    pub(super) machine: Machine,
    pub(super) rows: Vec<Row>,
}

impl Report {
    fn name(&self) -> String {
        let value = self.benchmark.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "schemaVersion": 1,
            "benchmark": self.name(),
            "milliseconds": self.milliseconds,
            "machine": self.machine,
            "rows": self.rows,
        })
    }

    fn heading(&self) -> String {
        let machine = &self.machine;
        format!(
            "{}: {} x {}, Linux {}, load {:.2} before and {:.2} after, {} ms per turn",
            self.name(),
            machine.processors,
            machine.processor,
            machine.kernel,
            machine.load,
            machine.load_after,
            self.milliseconds
        )
    }

    /// Rows that belong side by side.
    fn groups(&self) -> Vec<Vec<&Row>> {
        let mut groups: Vec<Vec<&Row>> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|group| group[0].is_beside(row)) {
                Some(group) => group.push(row),
                None => groups.push(vec![row]),
            }
        }
        groups
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n", self.heading());
        for group in self.groups() {
            let (first, most) = (group[0], most(&group));
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "\n{} ({}), {} Services, {}",
                first.metric, first.unit, first.services, first.placement
            );
            for row in &group {
                let bar = "#".repeat((40.0 * row.median / most) as usize);
                let _ = writeln!(
                    text,
                    "  {:<10} {:>12.2}  {:>12.2} .. {:<12.2} {:>5.2}  {bar}",
                    row.dataplane,
                    row.median,
                    row.min,
                    row.max,
                    first.median / row.median
                );
            }
        }
        text.push_str("\nMedian, least and most of all rounds; penstock by this one; bar.\n");
        text
    }

    pub(super) fn html(&self) -> String {
        let mut body = String::new();
        for group in self.groups() {
            let (first, most) = (group[0], most(&group));
            let _ = write!(
                body,
                "<h2>{} <small>{}, {} Services, {}</small></h2>\n<table>\n",
                first.metric, first.unit, first.services, first.placement
            );
            for row in &group {
                let percent = |value: f64| 100.0 * value / most;
                let _ = writeln!(
                    body,
                    "<tr><th>{}<td>{:.2}<td class=plot><i style='width:{:.1}%'></i><b style='left:{:.1}%;width:{:.1}%' \
                     title='{:.2} to {:.2}'></b><td>{:.2}",
                    row.dataplane,
                    row.median,
                    percent(row.median),
                    percent(row.min),
                    percent(row.max - row.min),
                    row.min,
                    row.max,
                    first.median / row.median
                );
            }
            body.push_str("</table>\n");
        }
        format!(
            "{HEAD}<h1>{}</h1>\n<p>{}</p>\n<p>Median, its bar with the spread of all rounds, and Penstock by this one.</p>\n{body}",
            self.name(),
            self.heading()
        )
    }
}

fn most(group: &[&Row]) -> f64 {
    group
        .iter()
        .map(|row| row.max)
        .fold(f64::MIN_POSITIVE, f64::max)
}

const HEAD: &str = "<!doctype html>
<meta charset=utf-8>
<title>Penstock: benchmark</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; color: #222 }
h2 { font-size: 1.1em; margin-top: 2em } small { font-weight: normal; color: #777 }
table { width: 100%; border-spacing: 0 4px } th { text-align: left; width: 7em } td { text-align: right; width: 6em }
td.plot { position: relative; width: auto; height: 1.4em; background: #f4f4f4; padding: 0 }
.plot i { position: absolute; left: 0; top: 0; bottom: 0; background: #7aa7d6 }
.plot b { position: absolute; top: 45%; height: 2px; min-width: 2px; background: #1d3f66 }
</style>
";
