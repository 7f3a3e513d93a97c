//! Sysctls of the calling thread's network namespace: files under `/proc/sys/net`, nothing else.

use super::{Error, Result};
use std::fs;
use std::io;
use std::path::PathBuf;

/// Writes `/proc/sys/net/NAME`; `name` is a path such as `ipv4/conf/eth0/rp_filter`.
pub fn write_sysctl(name: &str, value: &str) -> Result<()> {
    path(name)
        .and_then(|path| fs::write(path, value))
        .map_err(|source| Error::new(format!("write {value} to /proc/sys/net/{name}"), source))
}

/// Reads `/proc/sys/net/NAME`, without the newline.
pub fn read_sysctl(name: &str) -> Result<String> {
    path(name)
        .and_then(fs::read_to_string)
        .map(|text| text.trim_end().to_owned())
        .map_err(|source| Error::new(format!("read /proc/sys/net/{name}"), source))
}

/// Sysctls outside `net` are the whole machine's, so a name must not lead there.
fn path(name: &str) -> io::Result<PathBuf> {
    let leads_out = name
        .split('/')
        .any(|part| part.is_empty() || part == ".." || part == ".");
    if leads_out {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a path below /proc/sys/net",
        ));
    }
    Ok(PathBuf::from("/proc/sys/net").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_net() {
        for name in [
            "../kernel/hostname",
            "/etc/passwd",
            "ipv4//x",
            "ipv4/./x",
            "",
        ] {
            assert!(path(name).is_err(), "{name}");
        }
        assert!(path("ipv4/conf/eth0.100/rp_filter").is_ok());
    }
}
