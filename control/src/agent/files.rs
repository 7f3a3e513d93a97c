//! Which of the files with the objects changed.
//!
//! Folders are watched, because editors and ConfigMaps replace files rather than write them: that of the file as it was
//! named, and that of the file behind it when it is a link. One that is written in place counts when it is closed. Whether
//! the path leads to other folders meanwhile, because one was replaced or a link on the way to it, nobody tells: that is
//! looked at now and then.

use crate::snapshot;
use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How often the folders are compared with those that the path leads to.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Watches the files of a snapshot.
pub(super) struct Watch {
    snapshot: PathBuf,
    /// Device and inode of each folder; none while the path leads nowhere.
    identity: Option<Vec<(u64, u64)>>,
    inotify: OwnedFd,
    /// Folders by the kernel's number for them.
    folders: BTreeMap<i32, PathBuf>,
    watched: Watched,
}

impl Watch {
    /// # Errors
    /// When the path leads nowhere, or the user watches too much already.
    pub(super) fn open(snapshot: &Path) -> Result<Self> {
        let (watched, folders) = Watched::new(snapshot)?;
        let inotify = inotify::init(CreateFlags::CLOEXEC).context("cannot watch files")?;
        let what = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB;
        let watch = |folder: PathBuf| {
            let number = inotify::add_watch(&inotify, &folder, what);
            let number = number.with_context(|| format!("cannot watch {}", folder.display()))?;
            Ok((number, folder))
        };
        Ok(Self {
            snapshot: snapshot.to_owned(),
            identity: identity(&folders),
            folders: folders.into_iter().map(watch).collect::<Result<_>>()?,
            inotify,
            watched,
        })
    }

    /// Waits for what happens next. The names of the files of the folder that changed; `None` stands for all there are.
    pub(super) fn wait(&mut self) -> Vec<Option<OsString>> {
        while !self.has_news() {
            if self.leads_elsewhere() {
                return vec![None];
            }
        }
        self.take()
    }

    /// Waits for a while. An error of the kernel's is told when the news are taken.
    fn has_news(&self) -> bool {
        let mut polled = [PollFd::new(&self.inotify, PollFlags::IN)];
        let polled = poll(&mut polled, Some(&LOOK_AGAIN));
        !matches!(polled, Ok(0) | Err(rustix::io::Errno::INTR))
    }

    /// Whether the path leads to other folders than before, or nowhere. Those that it leads to now are watched from here on.
    fn leads_elsewhere(&mut self) -> bool {
        let folders = Watched::new(&self.snapshot).map(|(_, folders)| folders);
        let now = folders.ok().and_then(|folders| identity(&folders));
        if now == self.identity {
            return false;
        }
        match Self::open(&self.snapshot) {
            Ok(watch) => *self = watch,
            Err(_) => self.identity = None,
        }
        true
    }

    fn take(&self) -> Vec<Option<OsString>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut changed = Vec::new();
        while changed.is_empty() || !reader.is_buffer_empty() {
            match reader.next() {
                // The kernel lost some: everything may have changed.
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    changed.push(None);
                }
                Ok(event) => {
                    let is_new = event.events().contains(ReadFlags::CREATE);
                    let folder = self.folders.get(&event.wd());
                    let name = event.file_name().map(CStr::to_bytes).map(OsStr::from_bytes);
                    if let (Some(folder), Some(name)) = (folder, name)
                        && (!is_new || is_complete(&folder.join(name)))
                    {
                        changed.extend(self.watched.changed(folder, name));
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("cannot see changes of the objects any more: {error}");
                    std::thread::park();
                }
            }
        }
        changed.dedup();
        changed
    }
}

/// Whether a file that has just come holds all that it will: a link does, and another name of a file that was there. Any
/// other is still to be written, and closed.
fn is_complete(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|file| file.is_symlink() || file.nlink() > 1)
}

fn identity(folders: &[PathBuf]) -> Option<Vec<(u64, u64)>> {
    let of_one = |folder: &PathBuf| {
        let metadata = folder.metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    folders.iter().map(of_one).collect()
}

/// Which files matter.
enum Watched {
    /// This one, under both its names.
    File([PathBuf; 2]),
    /// Those of a folder.
    Folder,
}

impl Watched {
    /// With the folders to watch.
    fn new(snapshot: &Path) -> io::Result<(Self, Vec<PathBuf>)> {
        let target = snapshot.canonicalize()?;
        if target.is_dir() {
            return Ok((Self::Folder, vec![target]));
        }
        let named = std::path::absolute(snapshot)?;
        let folder = parent(&named).canonicalize()?;
        let below = named.file_name().map(|name| folder.join(name));
        let named = below.unwrap_or(named);
        let mut folders = vec![folder, parent(&target)];
        folders.dedup();
        Ok((Self::File([named, target]), folders))
    }

    /// What `name` in `folder` having changed means.
    fn changed(&self, folder: &Path, name: &OsStr) -> Option<Option<OsString>> {
        // The link by which a mounted ConfigMap replaces all its files at once.
        if name == "..data" {
            return Some(None);
        }
        let path = folder.join(name);
        match self {
            Self::File(files) => files.contains(&path).then_some(None),
            Self::Folder => snapshot::holds_objects(&path).then(|| Some(name.to_owned())),
        }
    }
}

fn parent(file: &Path) -> PathBuf {
    file.parent()
        .map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;

    /// An empty folder of this test's own.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("penstock-{name}-{}", std::process::id()));
        // What a run before left.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn in_a_folder_the_file_that_changed_is_named() {
        let folder = folder("files");
        fs::write(folder.join("a.yaml"), "").unwrap();
        let mut watch = Watch::open(&folder).unwrap();
        fs::write(folder.join("notes.txt"), "").unwrap();
        fs::write(folder.join("a.yaml"), "x").unwrap();
        assert_eq!(watch.wait(), [Some("a.yaml".into())]);
        fs::write(folder.join("next"), "y").unwrap();
        fs::rename(folder.join("next"), folder.join("b.json")).unwrap();
        assert_eq!(watch.wait(), [Some("b.json".into())]);
        fs::remove_file(folder.join("a.yaml")).unwrap();
        assert_eq!(watch.wait(), [Some("a.yaml".into())]);
        std::os::unix::fs::symlink("elsewhere", folder.join("..data")).unwrap();
        assert_eq!(watch.wait(), [None]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_new_file_counts_when_it_is_closed() {
        let folder = folder("new");
        let mut watch = Watch::open(&folder).unwrap();
        let mut slow = fs::File::create(folder.join("slow.yaml")).unwrap();
        slow.write_all(b"half").unwrap();
        fs::write(folder.join("quick.yaml"), "x").unwrap();
        assert_eq!(watch.wait(), [Some("quick.yaml".into())]);
        drop(slow);
        assert_eq!(watch.wait(), [Some("slow.yaml".into())]);
        fs::hard_link(folder.join("slow.yaml"), folder.join("other.yaml")).unwrap();
        assert_eq!(watch.wait(), [Some("other.yaml".into())]);
        std::os::unix::fs::symlink("slow.yaml", folder.join("link.yaml")).unwrap();
        assert_eq!(watch.wait(), [Some("link.yaml".into())]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_is_replaced_is_followed() {
        let folder = folder("replaced");
        let named = folder.join("objects");
        for version in ["v1", "v2"] {
            fs::create_dir(folder.join(version)).unwrap();
        }
        std::os::unix::fs::symlink("v1", &named).unwrap();
        let mut watch = Watch::open(&named).unwrap();
        // A link that is switched, as a tool does that follows a repository.
        std::os::unix::fs::symlink("v2", folder.join("next")).unwrap();
        fs::rename(folder.join("next"), &named).unwrap();
        assert_eq!(watch.wait(), [None]);
        fs::write(folder.join("v2").join("a.yaml"), "").unwrap();
        assert_eq!(watch.wait(), [Some("a.yaml".into())]);
        // The folder itself: gone, and there again.
        fs::rename(folder.join("v2"), folder.join("old")).unwrap();
        assert_eq!(watch.wait(), [None]);
        fs::create_dir(folder.join("v2")).unwrap();
        assert_eq!(watch.wait(), [None]);
        fs::write(folder.join("v2").join("b.yaml"), "").unwrap();
        assert_eq!(watch.wait(), [Some("b.yaml".into())]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn of_a_file_behind_a_link_both_names_count() {
        let folder = folder("link");
        let (real, link) = (folder.join("real"), folder.join("named.yaml"));
        fs::create_dir(&real).unwrap();
        fs::write(real.join("target.yaml"), "").unwrap();
        std::os::unix::fs::symlink(real.join("target.yaml"), &link).unwrap();
        let mut watch = Watch::open(&link).unwrap();
        fs::write(folder.join("other.yaml"), "").unwrap();
        fs::write(real.join("target.yaml"), "x").unwrap();
        assert_eq!(watch.wait(), [None]);
        fs::write(folder.join("next"), "y").unwrap();
        fs::rename(folder.join("next"), &link).unwrap();
        assert_eq!(watch.wait(), [None]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
