//! [`Dump`]: the output of iptables-save and ip6tables-save, read back.
//!
//! Read are both tools' headers, one after the other or alone, with or without counters (`-c`), from iptables-nft
//! or iptables-legacy. A part without a header is IPv6 if it has IPv6 addresses in it.

use crate::model::Family;
use std::collections::BTreeMap;
use std::fmt;

/// What a node's iptables and ip6tables hold; a family is absent when nobody asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// From iptables-save.
    pub v4: Option<Tables>,
    /// From ip6tables-save.
    pub v6: Option<Tables>,
}

/// All chains of all tables of one family.
pub type Tables = BTreeMap<ChainName, Vec<Rule>>;

/// A chain by its table and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName {
    /// `nat`, `filter`, `mangle`, …
    pub table: String,
    /// `KUBE-SERVICES`, …
    pub chain: String,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.chain)
    }
}

/// A rule, without its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As it was printed.
    pub text: String,
    /// Its words, without the quotes.
    pub words: Vec<String>,
}

/// A line that iptables-save does not write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}; expected is the output of iptables-save or ip6tables-save")]
pub struct DumpError {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl Dump {
    /// Reads `text`.
    ///
    /// # Errors
    ///
    /// The first line that iptables-save does not write, or the last one, when a table has no end.
    pub fn parse(text: &str) -> Result<Self, DumpError> {
        let mut reader = Reader::default();
        for (index, line) in text.lines().enumerate() {
            let at = |message| DumpError {
                line: index + 1,
                message,
            };
            reader.line(line.trim()).map_err(at)?;
        }
        match &reader.table {
            None => Ok(reader.finish()),
            Some(table) => Err(DumpError {
                line: text.lines().count(),
                message: format!(
                    "the dump ends within the table {table}, before its COMMIT; take it anew"
                ),
            }),
        }
    }

    /// The tables of a family.
    pub const fn of(&self, family: Family) -> Option<&Tables> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

impl Rule {
    /// The text behind `--comment`.
    pub fn comment(&self) -> Option<&str> {
        self.option("--comment")
    }

    /// The text behind `-j` or `-g`.
    pub fn target(&self) -> Option<&str> {
        self.option("-j").or_else(|| self.option("-g"))
    }

    /// The word behind `option`.
    pub fn option(&self, option: &str) -> Option<&str> {
        let position = self.words.iter().position(|word| word == option)?;
        self.words.get(position + 1).map(String::as_str)
    }
}

/// One tool's output.
#[derive(Default)]
struct Part {
    family: Option<Family>,
    tables: Tables,
    seen: Vec<String>,
}

#[derive(Default)]
struct Reader {
    parts: Vec<Part>,
    table: Option<String>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        match line.chars().next() {
            None => {}
            Some('#') => self.header(line),
            Some('*') => self.table(&line[1..]),
            Some(':') => {
                let chain = line[1..].split(' ').next().unwrap_or_default();
                self.chain(chain)?;
            }
            Some(_) if line == "COMMIT" => self.table = None,
            Some(_) => self.rule(line)?,
        }
        Ok(())
    }

    fn header(&mut self, line: &str) {
        if let Some(family) = family_of_header(line) {
            self.begin(Some(family));
        }
    }

    fn begin(&mut self, family: Option<Family>) {
        // iptables-nft and iptables-legacy write their header once per table, or once for all.
        let same = |part: &Part| part.family == family && family.is_some();
        match self.parts.iter().position(same) {
            Some(position) => {
                let part = self.parts.remove(position);
                self.parts.push(part);
            }
            None => self.parts.push(Part {
                family,
                ..Part::default()
            }),
        }
    }

    fn table(&mut self, table: &str) {
        let again =
            |part: &Part| part.family.is_none() && part.seen.iter().any(|seen| seen == table);
        if self.parts.last().is_none_or(again) {
            self.begin(None);
        }
        if let Some(part) = self.parts.last_mut() {
            part.seen.push(table.to_owned());
        }
        self.table = Some(table.to_owned());
    }

    fn chain(&mut self, chain: &str) -> Result<&mut Vec<Rule>, String> {
        let outside = || "a chain or rule stands outside of a table".to_owned();
        let table = self.table.clone().ok_or_else(outside)?;
        let part = self.parts.last_mut().ok_or_else(outside)?;
        let name = ChainName {
            table,
            chain: chain.to_owned(),
        };
        Ok(part.tables.entry(name).or_default())
    }

    /// `[packets:bytes] -A CHAIN words…`, the counters only with `-c`.
    fn rule(&mut self, line: &str) -> Result<(), String> {
        let without_counters = match line.strip_prefix('[') {
            Some(rest) => rest.split_once("] ").map_or("", |(_, rule)| rule),
            None => line,
        };
        let not_a_rule = || format!("{line:?} is no rule");
        let rule = without_counters
            .strip_prefix("-A ")
            .ok_or_else(not_a_rule)?;
        let (chain, text) = rule.split_once(' ').unwrap_or((rule, ""));
        let words = words(text).ok_or_else(|| format!("a quote is not closed in {line:?}"))?;
        self.chain(chain)?.push(Rule {
            text: text.to_owned(),
            words,
        });
        Ok(())
    }

    fn finish(self) -> Dump {
        let mut dump = Dump::default();
        for part in self.parts {
            let guess = if has_ipv6(&part.tables) {
                Family::V6
            } else {
                Family::V4
            };
            let slot = match part.family.unwrap_or(guess) {
                Family::V4 => &mut dump.v4,
                Family::V6 => &mut dump.v6,
            };
            slot.get_or_insert_default().extend(part.tables);
        }
        dump
    }
}

/// The family that a tool's header names: `# Generated by ip6tables-save v1.8.9 (nf_tables) on …`.
fn family_of_header(line: &str) -> Option<Family> {
    let comment = line.strip_prefix("# ")?;
    let tool = comment.strip_prefix("Generated by ").unwrap_or(comment);
    match tool.split(' ').next()? {
        "iptables-save" | "iptables-nft-save" | "iptables-legacy-save" => Some(Family::V4),
        "ip6tables-save" | "ip6tables-nft-save" | "ip6tables-legacy-save" => Some(Family::V6),
        _ => None,
    }
}

fn has_ipv6(tables: &Tables) -> bool {
    let addresses = ["-s", "-d", "--to-destination"];
    tables.values().flatten().any(|rule| {
        let mut given = addresses.iter().filter_map(|option| rule.option(option));
        given.any(|address| address.matches(':').count() > 1)
    })
}

/// Splits at blanks outside of double quotes; a backslash inside of quotes takes the next character as it is.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().push(characters.next()?),
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, chain: &str) -> ChainName {
        ChainName {
            table: table.to_owned(),
            chain: chain.to_owned(),
        }
    }

    #[test]
    fn headers_counters_and_quotes_are_read() {
        let dump = Dump::parse(
            "# Generated by iptables-save v1.8.9 (nf_tables) on Fri\n*nat\n:A ACCEPT [1:2]\n\
             [3:4] -A A -m comment --comment \"x \\\"y\\\"\" -j B\nCOMMIT\n# Completed on Fri\n\
             # Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n\
             # Generated by ip6tables-save v1.8.9 on Fri\n*nat\n:A - [0:0]\nCOMMIT\n",
        )
        .unwrap();
        let rule = &dump.v4.unwrap()[&chain("nat", "A")][0];
        assert_eq!(rule.comment(), Some("x \"y\""));
        assert_eq!(rule.target(), Some("B"));
        assert!(dump.v6.unwrap()[&chain("nat", "A")].is_empty());
    }

    #[test]
    fn without_headers_the_addresses_tell_the_family() {
        let six = "*nat\n:A - [0:0]\n-A A -d fd00::1/128 -j B\nCOMMIT\n";
        let four = "*nat\n:A - [0:0]\n-A A -d 10.0.0.1/32 -j B\nCOMMIT\n";
        let dump = Dump::parse(&format!("{four}{six}")).unwrap();
        assert_eq!(dump.v4.unwrap()[&chain("nat", "A")].len(), 1);
        assert_eq!(dump.v6.unwrap()[&chain("nat", "A")].len(), 1);
        assert_eq!(Dump::parse(six).unwrap().v4, None);
    }

    #[test]
    fn what_iptables_does_not_write_is_refused_with_its_line() {
        for (text, line) in [
            ("table ip kube-proxy {", 1),
            ("*nat\nChain INPUT (policy ACCEPT)", 2),
            ("-A INPUT -j ACCEPT", 1),
            ("*nat\n-A A --comment \"open", 2),
            ("*filter\nCOMMIT\n*nat\n:A - [0:0]\n-A A -j B\n", 5),
        ] {
            assert_eq!(Dump::parse(text).unwrap_err().line, line, "{text}");
        }
    }
}
