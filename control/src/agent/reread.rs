//! The objects, looked at again after their files changed. What cannot be read or compiled changes nothing.

use super::Agent;
use super::slices::Exchange;
use crate::compile::CompileError;
use crate::problem::in_words;
use crate::snapshot::{self, Contents, SnapshotError};
use anyhow::Result;
use std::ffi::OsStr;

impl Agent {
    /// Takes the objects anew, of one file of the folder if that is enough. What cannot be read or compiled changes
    /// nothing. `is_last`: no other file is known to have changed.
    pub(super) fn reread(&mut self, file: Option<&OsStr>, is_last: bool) {
        let result = match file.map_or(Exchange::Declined, |file| self.exchange_slices(file)) {
            Exchange::Same => Ok(Reread::Same),
            Exchange::Published => Ok(Reread::Published),
            Exchange::Declined => self.try_reread(),
        };
        self.telemetry.settled(result.is_err());
        match result {
            Ok(Reread::Same) => {}
            Ok(Reread::Published) => {
                self.refused = None;
                tracing::info!(generation = self.generation.0, "published");
            }
            Err(error) => {
                let why = in_words(&error);
                if self.refused.as_ref() != Some(&why) {
                    tracing::error!("the objects stay as they were: {why}");
                }
                self.refused = Some(why);
            }
        }
        if !is_last {
            let health = self.telemetry.health();
            health.queued(self.telemetry.moment());
        }
    }

    fn try_reread(&mut self) -> Result<Reread> {
        let (path, digests) = (&self.settings.snapshot, &self.digests);
        let seen = self.seen.take();
        snapshot::require_files(path)?;
        // One change of a file makes several events.
        if seen.is_some() && seen == Some(snapshot::digest(path, digests)?) {
            self.seen = seen;
            return Ok(Reread::Same);
        }
        let contents = Contents::read(path, digests)?;
        let taken = contents.snapshot.map_err(Into::into);
        let taken = taken.and_then(|snapshot| self.take(snapshot));
        // What is wrong with the objects stays wrong; what is not theirs may be over when they are looked at again.
        if taken.as_ref().err().is_none_or(is_of_objects) {
            self.seen = Some(contents.digest);
        }
        taken.map(|()| Reread::Published)
    }

    /// What was refused for a reason that may be over is looked at again now and then.
    pub(super) fn reread_unseen(&mut self) {
        if self.refused.is_some() && self.seen.is_none() {
            self.reread(None, true);
        }
    }
}

/// Whether the objects are wrong, and not something else.
fn is_of_objects(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(SnapshotError::Invalid(_) | SnapshotError::Empty(_))
    ) || error.is::<CompileError>()
}

/// What came of looking at the objects again.
enum Reread {
    Same,
    Published,
}
