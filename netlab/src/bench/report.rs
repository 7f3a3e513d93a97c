//! The figures of a run: medians and spread, as JSON and as text with bars. [`super::html`] draws them.

use super::load::Figures;
use super::machine::{Machine, Settings};
use super::objects::Position;
use super::{Benchmark, Subject};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;

/// `1 thing`, `2 things`.
pub(super) fn counted(number: u32, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// What a row is about, apart from the metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Key {
    pub(super) services: u32,
    pub(super) dataplane: &'static str,
    pub(super) placement: &'static str,
    /// Where the probed Service stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) probed: Option<Position>,
    /// Of each Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) endpoints: Option<u32>,
    /// What goes on meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attack: Option<&'static str>,
}

impl Key {
    pub(super) const fn of(services: u32, subject: Subject, placement: &'static str) -> Self {
        Self {
            services,
            dataplane: subject.name(),
            placement,
            probed: None,
            endpoints: None,
            attack: None,
        }
    }

    pub(super) const fn under(self, attack: &'static str) -> Self {
        Self {
            attack: Some(attack),
            ..self
        }
    }

    /// The Services, for people.
    pub(super) fn circumstances(&self) -> String {
        let services = counted(self.services, "Service");
        let endpoints = self
            .endpoints
            .map(|number| format!(" of {}", counted(number, "endpoint")));
        let attack = self.attack.map(|attack| format!(", {attack}"));
        services + &endpoints.unwrap_or_default() + &attack.unwrap_or_default()
    }

    pub(super) const fn at(self, position: Position) -> Self {
        Self {
            probed: Some(position),
            ..self
        }
    }

    pub(super) const fn with_endpoints(self, endpoints: u32) -> Self {
        Self {
            endpoints: Some(endpoints),
            ..self
        }
    }
}

/// What rounds found, by metric, in the order in which metrics came up.
#[derive(Clone, Debug, Default)]
pub(super) struct Series(Vec<(&'static str, &'static str, Vec<f64>)>);

impl Series {
    pub(super) fn add(&mut self, figures: Figures) {
        for (metric, unit, value) in figures {
            match self.0.iter_mut().find(|(known, ..)| *known == metric) {
                Some((.., values)) => values.push(value),
                None => self.0.push((metric, unit, vec![value])),
            }
        }
    }

    /// A row for each metric.
    pub(super) fn rows(&self, key: Key) -> Vec<Row> {
        let row = |(metric, unit, values): &(&'static str, &'static str, Vec<f64>)| {
            let mut values = values.clone();
            values.sort_by(f64::total_cmp);
            let at = |nth: usize| values.get(nth).copied().unwrap_or(0.0);
            let last = values.len().saturating_sub(1);
            Row {
                key,
                metric,
                unit,
                // Of an even number the mean of the middle two.
                median: f64::midpoint(at(last / 2), at(values.len() / 2)),
                min: at(0),
                max: at(last),
                runs: values.len(),
            }
        };
        self.0.iter().map(row).collect()
    }
}

/// One metric of one subject.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) key: Key,
    pub(super) metric: &'static str,
    pub(super) unit: &'static str,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) runs: usize,
}

impl Row {
    fn is_beside(&self, other: &Self) -> bool {
        let without = |row: &Self| {
            let key = Key {
                dataplane: "",
                probed: None,
                ..row.key
            };
            (key, row.metric)
        };
        without(self) == without(other)
    }

    /// Who, and through which Service if there are several.
    pub(super) fn who(&self) -> String {
        match self.key.probed {
            Some(position @ Position::Middle) => {
                format!("{}, {}", self.key.dataplane, position.name())
            }
            _ => self.key.dataplane.to_owned(),
        }
    }

    /// Whether less of it is better.
    pub(super) fn is_time(&self) -> bool {
        matches!(self.unit, "us" | "ms")
    }
}

/// Rows that belong side by side, ours first.
pub(super) struct Group<'a>(pub(super) Vec<&'a Row>);

impl<'a> Group<'a> {
    pub(super) fn first(&self) -> &'a Row {
        self.0[0]
    }

    /// The most of all, which the scale ends at; not zero.
    pub(super) fn most(&self) -> f64 {
        let all = self.0.iter().map(|row| row.max);
        all.fold(f64::MIN_POSITIVE, f64::max)
    }

    /// Ours by this one, through the Service in the same place if we have one there.
    pub(super) fn ratio(&self, row: &Row) -> Option<f64> {
        let ours = self.0.iter().filter(|own| own.key.dataplane == OURS);
        let same_place = ours.clone().find(|own| own.key.probed == row.key.probed);
        let own = same_place.or_else(|| ours.clone().next())?;
        (row.median > 0.0).then(|| own.median / row.median)
    }

    pub(super) fn title(&self) -> String {
        let Row {
            key, metric, unit, ..
        } = self.first();
        let better = if self.first().is_time() {
            ", less is better"
        } else {
            ""
        };
        format!(
            "{metric} ({unit}{better}), {}, {}",
            key.circumstances(),
            key.placement
        )
    }
}

const OURS: &str = Subject::Penstock.name();

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) benchmark: Benchmark,
    pub(super) began: Timestamp,
    pub(super) settings: Settings,
    pub(super) machine: Machine,
    pub(super) rows: Vec<Row>,
}

impl Report {
    pub(super) fn json(&self) -> Value {
        json!({
            "schemaVersion": 1,
            "benchmark": self.benchmark.name(),
            "began": self.began(),
            "busy": self.machine.is_busy(),
            "settings": self.settings,
            "machine": self.machine,
            "rows": self.rows,
        })
    }

    /// When the run began, in UTC (RFC 3339).
    fn began(&self) -> String {
        format!("{:.0}", self.began)
    }

    /// When, on what, and how.
    pub(super) fn circumstances(&self) -> [String; 4] {
        let machine = &self.machine;
        let busy = if machine.is_busy() {
            ", beside other programs: the machine was busy (--busy-is-fine)"
        } else {
            ""
        };
        [
            format!("began {}{busy}", self.began()),
            self.settings.command.clone(),
            format!(
                "{} x {}, Linux {}, load {:.2} before and {:.2} after",
                machine.processors,
                machine.processor,
                machine.kernel,
                machine.load,
                machine.load_after,
            ),
            self.settings.words(self.benchmark),
        ]
    }

    pub(super) fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|group| group.first().is_beside(row)) {
                Some(group) => group.0.push(row),
                None => groups.push(Group(vec![row])),
            }
        }
        groups
    }

    pub(super) fn text(&self) -> String {
        const BAR: f64 = 40.0;
        let mut text = format!(
            "{}: {}\n",
            self.benchmark.name(),
            self.circumstances().join("\n")
        );
        for group in self.groups() {
            // Writing to a String does not fail.
            let _ = writeln!(text, "\n{}", group.title());
            for row in &group.0 {
                let bar = "#".repeat((BAR * row.median / group.most()) as usize);
                let ratio = group
                    .ratio(row)
                    .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
                let _ = writeln!(
                    text,
                    "  {:<17} {:>12.2}  {:>12.2} .. {:<12.2} {ratio:>5}  {bar}",
                    row.who(),
                    row.median,
                    row.min,
                    row.max,
                );
            }
        }
        text.push_str("\nColumns: median; least .. most of all rounds; the median of penstock divided by this one; bar of the median.\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_lack_a_metric_do_not_shift_the_others() {
        let mut series = Series::default();
        series.add(vec![("cold_load", "ms", 9.0), ("change", "ms", 3.0)]);
        series.add(vec![("change", "ms", 1.0)]);
        series.add(vec![("change", "ms", 2.0)]);
        let rows = series.rows(Key::of(1, Subject::Nftables, "any"));
        let found: Vec<_> = rows
            .iter()
            .map(|row| (row.metric, row.median, row.min, row.max, row.runs))
            .collect();
        assert_eq!(
            found,
            [
                ("cold_load", 9.0, 9.0, 9.0, 1),
                ("change", 2.0, 1.0, 3.0, 3)
            ]
        );
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        let median = |values: &[f64]| {
            let mut series = Series::default();
            for value in values {
                series.add(vec![("change", "ms", *value)]);
            }
            series.rows(Key::of(1, Subject::Penstock, "any"))[0].median
        };
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[7.0, 1.0]), 4.0);
        assert_eq!(median(&[7.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[7.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_peer_is_held_against_us_through_the_service_in_the_same_place() {
        let row = |subject, position, value| {
            let mut series = Series::default();
            series.add(vec![("connections_per_second", "1/s", value)]);
            series.rows(Key::of(100, subject, "apart").at(position))
        };
        let rows = [
            row(Subject::Penstock, Position::End, 100.0),
            row(Subject::Iptables, Position::End, 50.0),
            row(Subject::Plain, Position::End, 200.0),
            row(Subject::Penstock, Position::Middle, 90.0),
            row(Subject::Iptables, Position::Middle, 60.0),
        ]
        .concat();
        let group = Group(rows.iter().collect());
        let ratios: Vec<_> = rows.iter().map(|row| group.ratio(row)).collect();
        assert_eq!(
            ratios,
            [Some(1.0), Some(2.0), Some(0.5), Some(1.0), Some(1.5)]
        );
        assert_eq!(rows[4].who(), "iptables, middle");
    }
}
