//! A run as a page for browsers: bars with their spread, and curves over the number of Services. It needs no other file
//! and follows the light or dark of the system.

mod curves;

use super::objects::Position;
use super::report::{Group, Report, Row, counted};
use curves::curves;
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
         <p class=legend>Bars are medians; the line over a bar leads from the least to the most of all rounds. All bars of one \
         metric and placement have one scale. The last column is the median of Penstock divided by that of the row.</p>\n\
         <p class=legend>{}</p>\n{body}</main>\n",
        words(&report.rows)
    )
}

/// What the words of these rows mean.
fn words(rows: &[Row]) -> String {
    let placed = |name: &str| rows.iter().any(|row| row.key.placement == name);
    let is_there = |name: &str| rows.iter().any(|row| row.key.dataplane == name);
    let in_the_middle = |row: &Row| row.key.probed == Some(Position::Middle);
    let all = [
        (
            "one-cpu",
            placed("one-cpu"),
            "client, node and server share a processor",
        ),
        (
            "apart",
            placed("apart"),
            "the client has a processor, node and server another one",
        ),
        ("any", placed("any"), "the kernel chooses the processors"),
        (
            "middle",
            rows.iter().any(in_the_middle),
            "the Service that is asked stands in the middle of all; without the word it is at the end, the worst place in a \
             list of rules",
        ),
        (
            "iptables",
            is_there("iptables"),
            "the kernel under kube-proxy's rules of this kind",
        ),
        (
            "nftables",
            is_there("nftables"),
            "the kernel under kube-proxy's rules of this kind",
        ),
        (
            "plain",
            is_there("plain"),
            "routing without Services, the limit of any dataplane",
        ),
        (
            "tun-copy",
            is_there("tun-copy"),
            "the agent's devices, each packet given back as it came, the limit of any dataplane on them: T in \
             docs/benchmarks.md, where L is the bare loop in memory, without a lab",
        ),
        (
            "busy-poll",
            is_there("busy-poll"),
            "our agent when it never sleeps",
        ),
    ];
    let known = all.into_iter().filter(|(_, is_used, _)| *is_used);
    let each = known.map(|(word, _, meaning)| format!("<b>{word}</b>: {meaning}."));
    each.collect::<Vec<_>>().join(" ")
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
        text += &curves(groups);
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
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #5f6871; --rail: #eef0f2; --spread: #1f2328;
  --penstock: #1f6feb; --busy-poll: #8250df; --iptables: #b84e12; --nftables: #8a6a00; --plain: #57606a; --tun-copy: #1a7f5a }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e3e6e8; --faint: #8b949e; --rail: #22272c;
  --spread: #e3e6e8; --penstock: #539bf5; --busy-poll: #b392f0; --iptables: #e8894f; --nftables: #d4b03c; --plain: #a2abb4;
  --tun-copy: #46b98c } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 }
main { max-width: 88em; margin: 2.5em auto; padding: 0 1.5em } p { max-width: 60em; overflow-wrap: anywhere }
h1 { margin-bottom: .2em } h2 { margin: 2.2em 0 .4em; border-bottom: 1px solid var(--rail) } h3 { margin: .8em 0 .2em }
small, .legend, caption { color: var(--faint) } small { font-weight: normal } .legend b { color: var(--ink) }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(36em, 100%), 1fr)); gap: 0 2.5em }
table { width: 100%; border-spacing: 0 4px; margin-bottom: 1em; font-variant-numeric: tabular-nums }
caption { text-align: left } th { text-align: left; font-weight: normal; white-space: nowrap; padding-right: .5em; font-size: .93em }
thead th { text-align: right; color: var(--faint); font-size: .8em; padding: 0 0 0 1em }
thead th:first-child { text-align: left; padding: 0 } thead th:nth-child(2) { text-align: left; padding: 0 }
tr.penstock th { font-weight: bold } th[scope=row], td { width: 1% } td { text-align: right; white-space: nowrap; padding: 0 0 0 .8em }
th[scope=row] { min-width: 9.8em } td.spread { color: var(--faint); font-size: .87em }
td.plot { position: relative; width: auto; min-width: 9em; height: 1.3em; background: var(--rail); border-radius: 3px; padding: 0 }
.plot i { position: absolute; inset: 0 auto 0 0; border-radius: 3px }
.plot b { position: absolute; top: calc(50% - 1px); height: 2px; min-width: 2px; background: var(--spread); opacity: .75 }
svg { width: 100%; max-width: 560px; font-size: 10px } .grid { stroke: var(--rail) } polyline { fill: none; stroke-width: 2 }
svg text { fill: var(--faint); stroke: none } svg g text { fill: currentColor } .leader { fill: none; stroke-width: .75; opacity: .7 }
circle { fill: currentColor; stroke: none } g.middle polyline { stroke-dasharray: 4 3 }
@media (max-width: 40em) { main { margin: 1em auto; padding: 0 1em } svg { font-size: 12.5px }
  table, caption, thead, tbody { display: block } tr { display: grid; grid-template-columns: 1fr auto 6.5em; margin-bottom: .6em }
  thead th:nth-child(2), thead th:nth-child(4) { display: none } th[scope=row], td { width: auto }
  td.plot { grid-area: 2 / 1 / 2 / 4 } td.spread { grid-area: 3 / 1 / 3 / 4; padding: 0 } .spread::before { content: 'least to most ' } }
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

    /// Five that end within two lines: who ends higher stands higher, and each has the colour of its curve.
    #[test]
    fn names_stand_beside_their_curves_in_the_order_of_their_ends() {
        let subjects = [
            (Subject::Penstock, 4.0),
            (Subject::Iptables, 1.0),
            (Subject::Nftables, 5.0),
            (Subject::Plain, 100.0),
            (Subject::TunCopy, 3.0),
        ];
        let mut rows = Vec::new();
        for services in [1, 100] {
            for (subject, rate) in subjects {
                let mut series = Series::default();
                series.add(vec![("connections_per_second", "1/s", rate)]);
                rows.extend(series.rows(Key::of(services, subject, "apart")));
            }
        }
        let groups: Vec<Group<'_>> = rows
            .chunks(subjects.len())
            .map(|all| Group(all.iter().collect()))
            .collect();
        let page = section("connections_per_second", &groups);
        let names = page.lines().filter_map(|line| {
            let class = line.strip_prefix("<g class='")?.split_once('\'')?.0;
            let (rest, name) = line.strip_suffix("</text></g>")?.rsplit_once('>')?;
            assert_eq!(class, name);
            let height = rest.rsplit_once(" y='")?.1.strip_suffix('\'')?;
            Some((name, height.parse::<f64>().ok()?))
        });
        let names: Vec<(&str, f64)> = names.collect();
        let order: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            order,
            ["plain", "nftables", "penstock", "tun-copy", "iptables"]
        );
        assert!(names.is_sorted_by(|one, next| one.1 + 11.0 <= next.1));
        assert!(page.contains(">Services (logarithmic)</text>"));
    }

    #[test]
    fn only_words_that_are_used_are_explained() {
        let text = words(&rows(&[1]));
        assert!(text.contains("<b>apart</b>: ") && text.contains("<b>iptables</b>: "));
        assert!(!text.contains("one-cpu") && !text.contains("tun-copy"));
        assert!(!text.contains("middle"));
    }
}
