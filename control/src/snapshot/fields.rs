//! Field types of Kubernetes objects that check what they hold while they are read.
//!
//! Addresses are read as the API server of 1.30 reads them (`ParseIPSloppy`): leading zeros of IPv4 are accepted
//! and dropped. The messages become the rule of a [`crate::problem::Problem`].

use ipnet::IpNet;
use serde::de::value::{self, StrDeserializer};
use serde::de::{DeserializeOwned, Error, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::net::IpAddr;

/// Reads an address; leading zeros in IPv4 are dropped (`netutils.ParseIPSloppy`).
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse()
        .ok()
        .or_else(|| without_leading_zeros(text)?.parse().ok())
}

/// As [`parse_ip`]; an IPv4 address in the form of IPv6 (`::ffff:10.0.0.1`) is the IPv4 address, as in Go (`To4`).
pub(super) fn parse_canonical_ip(text: &str) -> Option<IpAddr> {
    parse_ip(text).map(|address| address.to_canonical())
}

/// Reads a CIDR and clears its host bits (`netutils.ParseCIDRSloppy`).
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let network = IpNet::new(parse_ip(address)?, length.parse().ok()?).ok()?;
    Some(network.trunc())
}

fn without_leading_zeros(text: &str) -> Option<String> {
    let octets: Vec<&str> = text.split('.').collect();
    if octets.len() != 4 {
        return None;
    }
    let trimmed = octets
        .iter()
        .map(|octet| match octet.trim_start_matches('0') {
            "" if !octet.is_empty() => "0",
            rest => rest,
        });
    Some(trimmed.collect::<Vec<_>>().join("."))
}

/// An address.
pub(super) fn ip<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    from_text(deserializer, |text| {
        parse_canonical_ip(text).ok_or_else(|| not_an_ip(text))
    })
}

/// What a string stands for, or what is wrong with it.
pub(super) fn from_text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(Text(read))
}

/// One of the words of `T`, where an empty one is as good as none: the API server fills in the default for both
/// (`pkg/apis/core/v1/defaults.go`, `SetDefaults_Service`).
pub(super) fn word_or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(optional_word(deserializer)?.unwrap_or_default())
}

/// As [`word_or_default`], where what the default is depends on other fields.
pub(super) fn optional_word<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    from_text(deserializer, |text| match text {
        "" => Ok(None),
        _ => {
            let word: StrDeserializer<'_, value::Error> = text.into_deserializer();
            T::deserialize(word)
                .map(Some)
                .map_err(|error| error.to_string())
        }
    })
}

struct Text<F>(F);

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

/// An address, where absent and empty mean none.
pub(super) fn optional_ip<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => match parse_canonical_ip(text) {
            None => Err(D::Error::custom(not_an_ip(text))),
            address => Ok(address),
        },
    }
}

/// What is wrong with a text that is no address.
pub(super) fn not_an_ip(text: &str) -> String {
    format!("`{text}` is not an IP address; write one like 10.0.0.10 or fd00::10")
}

/// One element of a list of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Ip(#[serde(deserialize_with = "ip")] pub(super) IpAddr);

/// One element of a list of CIDRs; blanks around it are dropped, as kube-proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cidr(pub(super) IpNet);

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, |text| {
            parse_cidr(text.trim()).map(Self).ok_or_else(|| {
                format!("`{text}` is not a CIDR; write one like 10.0.0.0/8 or fd00::/48")
            })
        })
    }
}

/// A list of addresses.
pub(super) fn ips<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    let list = Vec::<Ip>::deserialize(deserializer)?;
    Ok(list.into_iter().map(|ip| ip.0).collect())
}

/// A list of CIDRs.
pub(super) fn cidrs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let list = Vec::<Cidr>::deserialize(deserializer)?;
    Ok(list.into_iter().map(|cidr| cidr.0).collect())
}

/// A port from 1 to 65535.
pub(super) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let number = i64::deserialize(deserializer)?;
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(not_a_port(number)),
    }
}

/// A port, where absent and 0 mean none.
pub(super) fn optional_port<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u16>, D::Error> {
    match Option::<i64>::deserialize(deserializer)? {
        None | Some(0) => Ok(None),
        Some(number) => u16::try_from(number)
            .map(Some)
            .map_err(|_| not_a_port(number)),
    }
}

/// Seconds of session affinity, where absent means the default.
pub(super) fn optional_seconds<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    let Some(number) = Option::<i64>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let seconds = u32::try_from(number);
    seconds
        .map(Some)
        .map_err(|_| D::Error::custom(not_seconds(number)))
}

/// What is wrong with seconds that session affinity does not take.
pub(super) fn not_seconds(number: i64) -> String {
    format!("{number} is not from 1 to 86400 seconds")
}

fn not_a_port<E: Error>(number: i64) -> E {
    E::custom(format!(
        "{number} is not a port; give a number from 1 to 65535"
    ))
}
