//! The files that most subcommands read.

use super::Failure;
use clap::Args;
use control::config::KubeProxyConfig;
use control::snapshot::Snapshot;
use std::path::PathBuf;

/// The objects and the configuration.
#[derive(Debug, Args)]
pub(crate) struct Inputs {
    /// Services, EndpointSlices and Nodes: a file or folder of YAML or JSON
    /// (`kubectl get svc,endpointslices,nodes -A -o yaml` prints one)
    #[arg(long, value_name = "FILE")]
    snapshot: PathBuf,
    /// A KubeProxyConfiguration file; kube-proxy's defaults when absent
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Inputs {
    /// Whether kube-proxy's defaults hold.
    pub(crate) const fn have_no_config(&self) -> bool {
        self.config.is_none()
    }

    /// Reads both; warnings and notes go to stderr.
    pub(crate) fn read(&self) -> Result<(Snapshot, KubeProxyConfig), Failure> {
        let snapshot = Snapshot::read(&self.snapshot)?;
        let config = self
            .config
            .as_deref()
            .map(KubeProxyConfig::read)
            .transpose()?;
        let config = config.unwrap_or_default();
        for note in snapshot.notes().iter().chain(&config.warnings) {
            eprintln!("note: {note}");
        }
        Ok((snapshot, config))
    }
}
