//! TUN devices with several queues, virtio-net headers and offloads.
//!
//! Source: Linux `Documentation/networking/tuntap.rst`, `drivers/net/tun.c`. The device lives as long as one of its
//! queues is open: when the process ends, however it ends, the device and its routes go.
#![allow(unsafe_code)]

use crate::frame::{Frame, VIRTIO_HEADER_LENGTH};
use crate::worker::Device;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// One queue of a TUN device.
#[derive(Debug)]
pub struct Queue {
    file: OwnedFd,
}

/// Which work the kernel leaves to the receiver of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Partial checksums, TCP and UDP segmentation.
    On,
    /// None: complete checksums, packets of the MTU's size.
    Off,
}

/// Creates the device `name` in the calling thread's network namespace, with `queues` queues.
///
/// # Errors
/// Those of `/dev/net/tun`: it is missing, one has no privilege, or the name is taken (`EBUSY`).
pub fn create(name: &str, queues: usize, offloads: Offloads) -> io::Result<Vec<Queue>> {
    let queue = |number| open_queue(name, number == 0, offloads);
    (0..queues).map(queue).collect()
}

/// The first queue makes the device; further ones are of the device that is there.
fn open_queue(name: &str, is_first: bool, offloads: Offloads) -> io::Result<Queue> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let queue = Queue { file };
    queue.attach(name, is_first)?;
    queue.set_header_length()?;
    queue.set_offloads(offloads)?;
    Ok(queue)
}

impl Queue {
    /// Another descriptor of the same queue.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn duplicate(&self) -> io::Result<Self> {
        let file = self.file.try_clone()?;
        Ok(Self { file })
    }

    fn attach(&self, name: &str, is_first: bool) -> io::Result<()> {
        let mut bytes = [0; libc::IFNAMSIZ];
        if name.len() >= bytes.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "interface name too long",
            ));
        }
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let exclusive = if is_first { libc::IFF_TUN_EXCL } else { 0 };
        let shared = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        let flags = shared | exclusive;
        let mut request = libc::ifreq {
            ifr_name: bytes,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: flags as libc::c_short,
            },
        };
        // SAFETY: `request` is a live, initialised ifreq, which is what TUNSETIFF reads and writes.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
        check(result)
    }

    /// Lets the device stay when its queues are closed; it then goes with its network namespace, many at once.
    ///
    /// # Errors
    /// Those of `TUNSETPERSIST`.
    pub fn persist(&self) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes its flag by value.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETPERSIST, 1) };
        check(result)
    }

    /// Lets a program choose the queue of each packet that the kernel sends to the device of this one.
    pub(super) fn choose_by(&self, program: &impl AsFd) -> io::Result<()> {
        let program = program.as_fd().as_raw_fd();
        // SAFETY: TUNSETSTEERINGEBPF reads one int from a live address.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &program) };
        check(result)
    }

    fn set_header_length(&self) -> io::Result<()> {
        let length = VIRTIO_HEADER_LENGTH as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int from a live address.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &length) };
        check(result)
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        // Both USO flags must be set together.
        let flags = match offloads {
            Offloads::On => {
                libc::TUN_F_CSUM
                    | libc::TUN_F_TSO4
                    | libc::TUN_F_TSO6
                    | libc::TUN_F_TSO_ECN
                    | libc::TUN_F_USO4
                    | libc::TUN_F_USO6
            }
            Offloads::Off => 0,
        };
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
        check(result)
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Device for Queue {
    fn receive(&mut self, frame: &mut Frame) -> io::Result<bool> {
        match rustix::io::read(&self.file, frame.room()) {
            Ok(length) => {
                frame.set_length(length);
                Ok(true)
            }
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn send(&mut self, frame: &Frame) -> io::Result<()> {
        rustix::io::write(&self.file, frame.bytes())?;
        Ok(())
    }
}
