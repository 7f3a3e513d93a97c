//! A run as a page for browsers: bars with their spread, and curves over the number of Services. It needs no other file
//! and follows the light or dark of the system.

use super::report::{Group, Report, Row, counted};
use std::fmt::Write;

pub(super) fn page(report: &Report) -> String {
    let circumstances = report.circumstances().join("<br>");
    let name = report.benchmark.name();
    let mut metrics: Vec<&str> = Vec::new();
    for row in &report.rows {
        if !metrics.contains(&row.metric) {
            metrics.push(row.metric);
        }
    }
    let mut body = String::new();
    for metric in metrics {
        let groups: Vec<Group<'_>> = report
            .groups()
            .into_iter()
            .filter(|group| group.first().metric == metric)
            .collect();
        body += &section(metric, &groups);
    }
    format!(
        "{HEAD}<title>Penstock: {name}</title>\n<main>\n<h1>Penstock: {name}</h1>\n<p>{circumstances}</p>\n\
         <p class=legend>Bars are medians; the line over a bar leads from the least to the most of all rounds. All of one metric and \
         placement have one scale. The last column is the median of Penstock divided by that of the row.</p>\n{body}</main>\n"
    )
}

/// All of one metric.
fn section(metric: &str, groups: &[Group<'_>]) -> String {
    let Some(first) = groups.first().map(Group::first) else {
        return String::new();
    };
    let better = if first.is_time() { "less" } else { "more" };
    let mut text = format!(
        "<section>\n<h2>{} <small>{}, {better} is better</small></h2>\n<div class=side>\n",
        spoken(metric),
        unit(first)
    );
    let mut placements: Vec<&str> = Vec::new();
    for group in groups {
        let placement = group.first().key.placement;
        if !placements.contains(&placement) {
            placements.push(placement);
        }
    }
    for placement in placements {
        let of_placement = |group: &&Group<'_>| group.first().key.placement == placement;
        let own: Vec<&Group<'_>> = groups.iter().filter(of_placement).collect();
        text += &side(placement, &own);
    }
    text + "</div>\n</section>\n"
}

/// All of one metric in one placement, on one scale: 1 and 10,000 Services are compared by eye.
fn side(placement: &str, groups: &[&Group<'_>]) -> String {
    let most = groups.iter().map(|group| group.most()).fold(0.0, f64::max);
    let mut text = format!("<div><h3>{placement}</h3>\n");
    if is_by_number(groups) {
        text += &curves(groups, most);
    }
    for group in groups {
        text += &bars(group, most);
    }
    text + "</div>\n"
}

/// Whether the number of Services is all that they differ in, so that a curve can lead over it.
fn is_by_number(groups: &[&Group<'_>]) -> bool {
    let keys = || groups.iter().map(|group| group.first().key);
    let Some(first) = keys().next() else {
        return false;
    };
    let differ_in_number =
        keys().all(|key| key.attack == first.attack && key.endpoints == first.endpoints);
    groups.len() > 1 && differ_in_number
}

/// A table with a bar for each, on a scale from nothing to `most`.
fn bars(group: &Group<'_>, most: f64) -> String {
    let first = group.first();
    let mut text = format!(
        "<table><caption>{}</caption>\n<thead><tr><th scope=col>dataplane<th scope=col>0 to {}<th scope=col>median, {}\
         <th scope=col>least to most<th scope=col>Penstock by it\n<tbody>\n",
        first.key.circumstances(),
        short(most),
        unit(first),
    );
    for row in &group.0 {
        let percent = |value: f64| 100.0 * value / most;
        let ratio = group
            .ratio(row)
            .map_or_else(String::new, |ratio| format!("{ratio:.2} ×"));
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "<tr class={}><th scope=row>{}<td class=plot><i style='width:{:.1}%'></i><b style='left:{:.1}%;width:{:.1}%'></b>\
             <td>{}<td class=spread title='{}'>{} to {}<td>{ratio}",
            row.key.dataplane,
            row.who(),
            percent(row.median),
            percent(row.min),
            percent(row.max - row.min),
            short(row.median),
            counted(row.runs as u32, "round"),
            short(row.min),
            short(row.max),
        );
    }
    text + "</table>\n"
}

/// A metric for people.
fn spoken(metric: &str) -> String {
    metric.replace('_', " ")
}

fn unit(row: &Row) -> &str {
    match row.unit {
        "us" => "µs",
        unit => unit,
    }
}

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 52.0;
const BELOW: f64 = 28.0;
const ABOVE: f64 = 10.0;
/// Room for the longest label.
const RIGHT: f64 = 104.0;

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

/// Medians over the number of Services.
fn curves(groups: &[&Group<'_>], most: f64) -> String {
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
    let scale = Scale { most, largest };
    text += &axes(&scale, &rows);
    let mut names: Vec<String> = Vec::new();
    let mut labels: Vec<f64> = Vec::new();
    for row in &rows {
        let name = row.who();
        if !names.contains(&name) {
            let own = rows.iter().filter(|row| row.who() == name);
            text += &curve(&scale, &own.copied().collect::<Vec<_>>(), &mut labels);
            names.push(name);
        }
    }
    text + "</svg>\n"
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
            at + 4.0,
            short(scale.most * share)
        );
    }
    let mut sizes: Vec<u32> = rows.iter().map(|row| row.key.services).collect();
    sizes.dedup();
    for services in sizes {
        let _ = writeln!(
            text,
            "<text x='{:.1}' y='{}' text-anchor=middle>{services}</text>",
            scale.x(services),
            HEIGHT - 10.0
        );
    }
    text
}

/// One of one name, which stands at its end, beside `labels` of others. Between its points nothing was measured.
fn curve(scale: &Scale, rows: &[&Row], labels: &mut Vec<f64>) -> String {
    let Some(end) = rows.last() else {
        return String::new();
    };
    let place = |row: &&Row| [scale.x(row.key.services), scale.y(row.median)];
    let places: Vec<[f64; 2]> = rows.iter().map(place).collect();
    let line: Vec<String> = places
        .iter()
        .map(|[x, y]| format!("{x:.1},{y:.1}"))
        .collect();
    let dots: String = places
        .iter()
        .map(|[x, y]| format!("<circle cx='{x:.1}' cy='{y:.1}' r=2.5 />"))
        .collect();
    let name = end.who();
    let dashes = if end.key.dataplane == name {
        ""
    } else {
        " middle"
    };
    let [x, y] = place(end);
    let at = free_place(y + 4.0, labels);
    labels.push(at);
    format!(
        "<g class='{}{dashes}'><polyline points='{}'/>{dots}<text x='{:.1}' y='{at:.1}'>{name}</text></g>\n",
        end.key.dataplane,
        line.join(" "),
        x + 6.0
    )
}

/// The nearest place for a label that lies on no other one.
fn free_place(wanted: f64, taken: &[f64]) -> f64 {
    const LINE: f64 = 11.0;
    let is_free = |at: &f64| taken.iter().all(|other| (other - at).abs() >= LINE);
    let steps = (0..=taken.len() * 24).map(|step| step as f64);
    let mut places = steps.flat_map(|step| [wanted + step, wanted - step]);
    places.find(is_free).unwrap_or(wanted)
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 100.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

const HEAD: &str = "<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content='width=device-width'>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #6a737d; --rail: #eef0f2; --spread: #1f2328;
  --penstock: #1f6feb; --busy-poll: #6ea8fe; --iptables: #c2571a; --nftables: #b08800; --plain: #57606a; --tun-copy: #1a7f5a }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e3e6e8; --faint: #8b949e; --rail: #22272c;
  --spread: #e3e6e8; --penstock: #539bf5; --busy-poll: #96c3ff; --iptables: #e8894f; --nftables: #d4b03c; --plain: #8b949e;
  --tun-copy: #46b98c } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 }
main { max-width: 76em; margin: 2.5em auto; padding: 0 1.5em }
h1 { margin-bottom: .2em } h2 { margin: 2.2em 0 .4em; border-bottom: 1px solid var(--rail) } h3 { margin: .8em 0 .2em }
small, .legend, caption, svg text { color: var(--faint) } small { font-weight: normal }
.side > div { overflow-x: auto }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34em, 100%), 1fr)); gap: 0 2.5em }
table { width: 100%; border-spacing: 0 4px; margin-bottom: 1em; font-variant-numeric: tabular-nums }
caption { text-align: left } th { text-align: left; font-weight: normal; white-space: nowrap; padding-right: .5em; font-size: .93em }
thead th { text-align: right; color: var(--faint); font-size: .8em } thead th:first-child, thead th:nth-child(2) { text-align: left }
tr.penstock th { font-weight: bold } th[scope=row] { width: 10.5em } td { text-align: right; white-space: nowrap; width: 5em }
td.spread { width: 9em; color: var(--faint); font-size: .87em }
td.plot { position: relative; width: auto; min-width: 6em; height: 1.3em; background: var(--rail); border-radius: 3px; padding: 0 }
.plot i { position: absolute; inset: 0 auto 0 0; border-radius: 3px }
.plot b { position: absolute; top: calc(50% - 1px); height: 2px; min-width: 2px; background: var(--spread); opacity: .75 }
svg { width: 100%; font-size: 10px } .grid { stroke: var(--rail) } polyline { fill: none; stroke-width: 2 }
svg text { fill: var(--faint); stroke: none } circle { fill: currentColor; stroke: none } g.middle polyline { stroke-dasharray: 4 3 }
.penstock i { background: var(--penstock) } g.penstock { stroke: var(--penstock); color: var(--penstock) }
.busy-poll i { background: var(--busy-poll) } g.busy-poll { stroke: var(--busy-poll); color: var(--busy-poll) }
.iptables i { background: var(--iptables) } g.iptables { stroke: var(--iptables); color: var(--iptables) }
.nftables i { background: var(--nftables) } g.nftables { stroke: var(--nftables); color: var(--nftables) }
.plain i { background: var(--plain) } g.plain { stroke: var(--plain); color: var(--plain) }
.tun-copy i { background: var(--tun-copy) } g.tun-copy { stroke: var(--tun-copy); color: var(--tun-copy) }
</style>
";

#[cfg(test)]
mod tests {
    use super::super::Subject;
    use super::super::report::{Key, Series};
    use super::*;

    /// Two dataplanes with so many Services each.
    fn rows(endpoints: &[u32]) -> Vec<Row> {
        let mut rows = Vec::new();
        for endpoints in endpoints {
            for (services, times) in [(1, [10.0, 5.0]), (10_000, [40.0, 80.0])] {
                let subjects = [Subject::Penstock, Subject::Iptables];
                for (subject, time) in subjects.into_iter().zip(times) {
                    let key = Key::of(services, subject, "apart").with_endpoints(*endpoints);
                    let mut series = Series::default();
                    series.add(vec![("round_trip_p50", "us", time)]);
                    rows.extend(series.rows(key));
                }
            }
        }
        rows
    }

    fn drawn(rows: &[Row]) -> String {
        let groups: Vec<Group<'_>> = rows
            .chunks(2)
            .map(|pair| Group(pair.iter().collect()))
            .collect();
        section("round_trip_p50", &groups)
    }

    #[test]
    fn bars_of_all_numbers_of_services_have_one_scale_and_figures() {
        let page = drawn(&rows(&[1]));
        for (dataplane, percent, figures) in [
            (
                "penstock",
                "12.5",
                "10.00<td class=spread title='1 round'>10.00 to 10.00<td>1.00 ×",
            ),
            (
                "iptables",
                "6.2",
                "5.00<td class=spread title='1 round'>5.00 to 5.00<td>2.00 ×",
            ),
            (
                "penstock",
                "50.0",
                "40.00<td class=spread title='1 round'>40.00 to 40.00<td>1.00 ×",
            ),
            (
                "iptables",
                "100.0",
                "80.00<td class=spread title='1 round'>80.00 to 80.00<td>0.50 ×",
            ),
        ] {
            let head = format!(
                "<tr class={dataplane}><th scope=row>{dataplane}<td class=plot><i style='width:{percent}%'>"
            );
            let line = page.lines().find(|line| line.starts_with(&head));
            assert!(
                line.is_some_and(|line| line.ends_with(figures)),
                "{dataplane}, {percent}: {page}"
            );
        }
        let heads = page.matches(
            "<th scope=col>median, µs<th scope=col>least to most<th scope=col>Penstock by it",
        );
        assert_eq!(
            (
                heads.count(),
                page.matches("<th scope=col>0 to 80.00").count()
            ),
            (2, 2)
        );
    }

    #[test]
    fn two_numbers_of_services_have_a_curve_that_says_what_it_shows() {
        let page = drawn(&rows(&[1]));
        let label = "aria-label='round trip p50 in µs, apart: medians with 1 to 10000 Services'";
        assert!(page.contains(label), "{page}");
        assert_eq!(
            (
                page.matches("<polyline").count(),
                page.matches("<circle").count()
            ),
            (2, 4)
        );
        let one_number = &rows(&[1])[..2];
        assert!(!drawn(one_number).contains("<svg"));
        assert!(
            !drawn(&rows(&[1, 10])).contains("<svg"),
            "they differ in endpoints, too"
        );
    }

    #[test]
    fn labels_lie_near_their_curves_and_on_no_other() {
        let mut taken: Vec<f64> = Vec::new();
        for wanted in [50.0, 50.0, 51.0, 10.0] {
            let at = free_place(wanted, &taken);
            assert!(taken.iter().all(|other| (other - at).abs() >= 11.0));
            taken.push(at);
        }
        assert_eq!(taken, [50.0, 61.0, 39.0, 10.0]);
    }
}
