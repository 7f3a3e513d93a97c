//! Network namespaces with names under `/run/netns`, as `ip netns` has them.
//!
//! Invariants: code runs in another namespace only in a thread that ends with it, so no thread of ours is ever
//! in the wrong one; a namespace that is the caller's own is refused, so nothing meant for a lab reaches the
//! machine.

use control::netlink::Netlink;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const FOLDER: &str = "/run/netns";
/// Says that we made `/run/netns`.
const OURS: &str = "/run/penstock/made-run-netns";
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace that we hold open.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes an empty namespace and mounts it at `/run/netns/NAME`.
    pub fn create(name: &str) -> io::Result<Self> {
        prepare_folder()?;
        let path = path(name);
        File::create_new(&path)?;
        in_new_thread(|| {
            dataplane::sys::netns::unshare_network()?;
            rustix::mount::mount_bind(OWN, &path).map_err(io::Error::from)
        })?;
        Self::open(name)
    }

    /// Makes an empty namespace that has no name and goes with its last process or descriptor.
    pub fn unnamed() -> io::Result<Self> {
        let file = in_new_thread(|| {
            dataplane::sys::netns::unshare_network()?;
            File::open(OWN)
        })?;
        Ok(Self {
            name: String::new(),
            file,
        })
    }

    /// Opens the namespace mounted at `/run/netns/NAME`.
    pub fn open(name: &str) -> io::Result<Self> {
        let file = File::open(path(name))?;
        if same_file(&file.metadata()?, &fs::metadata(OWN)?) {
            let text = format!(
                "{} is the machine's own network namespace",
                path(name).display()
            );
            return Err(io::Error::other(text));
        }
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    /// Its name under `/run/netns`, empty when it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into it.
    pub fn enter(&self) -> io::Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.file.as_fd(), kind).map_err(io::Error::from)
    }

    /// Runs `inside` in it, in a thread of its own.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_new_thread(|| {
            self.enter()?;
            inside()
        })
    }

    /// An rtnetlink connection into it.
    pub fn netlink(&self) -> io::Result<Netlink> {
        self.run(Netlink::open)
    }

    /// Starts a process in it: a child begins in the namespace of the thread that forks it.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.run(|| command.spawn())
    }

    /// What `/proc/PID/ns/net` of its processes is, as device and inode.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        self.file
            .metadata()
            .map(|metadata| (metadata.dev(), metadata.ino()))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes the mount and the file away; the namespace goes with its last process. Gone already is fine.
pub fn remove(name: &str) -> io::Result<()> {
    let path = path(name);
    match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
        // EINVAL: a file that nothing is mounted on, as a crash leaves it.
        Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a namespace is mounted at `/run/netns/NAME`.
pub fn exists(name: &str) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let found = device(&path(name));
    found.is_some() && found == device(Path::new(OWN))
}

/// Where a namespace of that name is mounted.
pub fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Makes `/run/netns` as `ip netns` does: a mount of its own, shared, so that namespaces that are added and
/// removed there are so in every mount namespace.
fn prepare_folder() -> io::Result<()> {
    if is_mounted(Path::new(FOLDER))? {
        return Ok(());
    }
    if !Path::new(FOLDER).exists() {
        File::create(OURS)?;
        fs::create_dir_all(FOLDER)?;
        fs::set_permissions(FOLDER, fs::Permissions::from_mode(0o755))?;
    }
    rustix::mount::mount_bind_recursive(FOLDER, FOLDER)?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change(FOLDER, shared)?)
}

/// After the last lab: takes away the folders that we made, unless somebody else uses them by now.
pub fn tidy() -> io::Result<()> {
    if !crate::state::labs()?.is_empty() {
        return Ok(());
    }
    if Path::new(OURS).exists() {
        // Another's namespace under the mount keeps both: EBUSY, ENOTEMPTY.
        let _ = rustix::mount::unmount(FOLDER, UnmountFlags::empty());
        let _ = fs::remove_dir(FOLDER);
        fs::remove_file(OURS)?;
    }
    // Agents may have theirs in it, and it may be a disk of its own.
    let stays = |kind| {
        use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
        matches!(kind, NotFound | DirectoryNotEmpty | ResourceBusy)
    };
    match fs::remove_dir(crate::state::FOLDER) {
        Err(error) if !stays(error.kind()) => Err(error),
        _ => Ok(()),
    }
}

fn is_mounted(folder: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4).map(Path::new) == Some(folder)))
}

fn same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Runs `inside` in a thread that ends with it; its panic is ours.
fn in_new_thread<T: Send>(inside: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(inside);
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
