//! A run as a page for browsers: bars with their spread, and curves over the number of Services. It needs no other file
//! and follows the light or dark of the system.

use super::report::{Group, Report, Row};
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
         <p class=legend>Bars are medians; the line over a bar leads from the least to the most of all rounds; <b>×</b> is \
         Penstock by this one.</p>\n{body}</main>\n"
    )
}

/// All of one metric.
fn section(metric: &str, groups: &[Group<'_>]) -> String {
    let Some(first) = groups.first().map(Group::first) else {
        return String::new();
    };
    let better = if first.is_time() { "less" } else { "more" };
    let mut text = format!(
        "<section>\n<h2>{} <small>{}, {better} is better</small></h2>\n",
        metric.replace('_', " "),
        if first.unit == "us" {
            "µs"
        } else {
            first.unit
        }
    );
    let mut placements: Vec<&str> = Vec::new();
    for group in groups {
        let placement = group.first().key.placement;
        if !placements.contains(&placement) {
            placements.push(placement);
        }
    }
    text += "<div class=side>\n";
    for placement in placements {
        let of_placement = |group: &&Group<'_>| group.first().key.placement == placement;
        let own: Vec<&Group<'_>> = groups.iter().filter(of_placement).collect();
        // Writing to a String does not fail.
        let _ = writeln!(text, "<div><h3>{placement}</h3>");
        let by_number = |group: &&Group<'_>| group.first().key.attack.is_none();
        if own.len() > 2 && own.iter().copied().all(|group| by_number(&group)) {
            text += &curves(&own);
        }
        for group in own {
            text += &bars(group);
        }
        text += "</div>\n";
    }
    text + "</div>\n</section>\n"
}

/// A table with a bar for each.
fn bars(group: &Group<'_>) -> String {
    let caption = group.first().key.circumstances();
    let mut text = format!("<table><caption>{caption}</caption>\n");
    for row in &group.0 {
        let percent = |value: f64| 100.0 * value / group.most();
        let ratio = group
            .ratio(row)
            .map_or_else(String::new, |ratio| format!("{ratio:.2} ×"));
        let _ = writeln!(
            text,
            "<tr class={}><th>{}<td class=plot><i style='width:{:.1}%'></i><b style='left:{:.1}%;width:{:.1}%'></b>\
             <td title='{} to {}, {} rounds'>{}<td>{ratio}",
            row.key.dataplane,
            row.who(),
            percent(row.median),
            percent(row.min),
            percent(row.max - row.min),
            short(row.min),
            short(row.max),
            row.runs,
            short(row.median),
        );
    }
    text + "</table>\n"
}

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 52.0;
const BELOW: f64 = 28.0;
const ABOVE: f64 = 10.0;
/// Room for the longest label.
const RIGHT: f64 = 104.0;

/// Medians over the number of Services, which grows by factors.
fn curves(groups: &[&Group<'_>]) -> String {
    let rows: Vec<&Row> = groups.iter().flat_map(|group| &group.0).copied().collect();
    let most = groups.iter().map(|group| group.most()).fold(0.0, f64::max);
    let decades = |services: u32| f64::from(services).log10();
    let last = rows.iter().map(|row| decades(row.key.services));
    let last = last.fold(f64::MIN_POSITIVE, f64::max);
    let x = |services: u32| LEFT + (WIDTH - LEFT - RIGHT) * decades(services) / last;
    let y = |value: f64| HEIGHT - BELOW - (HEIGHT - BELOW - ABOVE) * value / most;
    let mut text = format!(
        "<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='medians over the number of Services'>\n"
    );
    for share in [0.0, 0.5, 1.0] {
        let at = y(most * share);
        let _ = writeln!(
            text,
            "<path class=grid d='M{LEFT} {at:.1}H{}'/><text x='{}' y='{:.1}' text-anchor=end>{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            short(most * share)
        );
    }
    let mut names: Vec<String> = Vec::new();
    for row in &rows {
        if !names.contains(&row.who()) {
            names.push(row.who());
        }
    }
    let mut labels: Vec<f64> = Vec::new();
    for name in names {
        let own: Vec<&&Row> = rows.iter().filter(|row| row.who() == name).collect();
        let Some(end) = own.last() else { continue };
        let points: Vec<String> = own
            .iter()
            .map(|row| format!("{:.1},{:.1}", x(row.key.services), y(row.median)))
            .collect();
        let dashes = if end.key.dataplane == name {
            ""
        } else {
            " middle"
        };
        let at = free_place(y(end.median) + 4.0, &labels);
        labels.push(at);
        let _ = writeln!(
            text,
            "<g class='{}{dashes}'><polyline points='{}'/><text x='{:.1}' y='{at:.1}'>{name}</text></g>",
            end.key.dataplane,
            points.join(" "),
            x(end.key.services) + 5.0
        );
    }
    for group in groups {
        let services = group.first().key.services;
        let _ = writeln!(
            text,
            "<text x='{:.1}' y='{}' text-anchor=middle>{services}</text>",
            x(services),
            HEIGHT - 10.0
        );
    }
    text + "</svg>\n"
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
main { max-width: 68em; margin: 2.5em auto; padding: 0 1.5em }
h1 { margin-bottom: .2em } h2 { margin: 2.2em 0 .4em; border-bottom: 1px solid var(--rail) } h3 { margin: .8em 0 .2em }
small, .legend, caption, svg text { color: var(--faint) } small { font-weight: normal }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(24em, 1fr)); gap: 0 2.5em }
table { width: 100%; border-spacing: 0 4px; margin-bottom: 1em; font-variant-numeric: tabular-nums }
caption { text-align: left } th { text-align: left; font-weight: normal; white-space: nowrap; width: 10em; padding-right: .5em; font-size: .93em }
tr.penstock th { font-weight: bold } td { text-align: right; white-space: nowrap; width: 5em }
td.plot { position: relative; width: auto; height: 1.3em; background: var(--rail); border-radius: 3px; padding: 0 }
.plot i { position: absolute; inset: 0 auto 0 0; border-radius: 3px }
.plot b { position: absolute; top: calc(50% - 1px); height: 2px; min-width: 2px; background: var(--spread); opacity: .75 }
svg { width: 100%; font-size: 10px } .grid { stroke: var(--rail) } polyline { fill: none; stroke-width: 2 }
svg text { fill: var(--faint) } g.middle polyline { stroke-dasharray: 4 3 }
.penstock i { background: var(--penstock) } g.penstock polyline { stroke: var(--penstock) }
.busy-poll i { background: var(--busy-poll) } g.busy-poll polyline { stroke: var(--busy-poll) }
.iptables i { background: var(--iptables) } g.iptables polyline { stroke: var(--iptables) }
.nftables i { background: var(--nftables) } g.nftables polyline { stroke: var(--nftables) }
.plain i { background: var(--plain) } g.plain polyline { stroke: var(--plain) }
.tun-copy i { background: var(--tun-copy) } g.tun-copy polyline { stroke: var(--tun-copy) }
</style>
";

#[cfg(test)]
mod tests {
    use super::*;

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
