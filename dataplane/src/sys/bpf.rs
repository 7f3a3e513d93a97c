//! Small eBPF programs that read a packet and end with a number, put together by hand and loaded by bpf(2).
//!
//! Only the instructions that [`queue_choice`](super::queue_choice) needs. The kernel's verifier proves at loading that
//! a program ends and touches nothing but the packet.
//!
//! Source: RFC 9669 (the instruction set), Linux `include/uapi/linux/bpf.h`, `kernel/bpf/syscall.c`. A packet is read by
//! the instructions of classic BPF (RFC 9669, section 5.5): what lies behind its end makes the program end with 0.
#![allow(unsafe_code)]

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// A register of 64 bits. Reading a packet loses R1 to R5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Register {
    /// What is read; what the program ends with.
    R0 = 0,
    /// The context when the program begins.
    R1 = 1,
    /// Where reading looks for the context.
    R6 = 6,
    R7 = 7,
    R8 = 8,
    R9 = 9,
}

use Register::{R0, R1, R6};

/// How much is read of a packet, in network byte order.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Width {
    Word = 0x00,
    Halfword = 0x08,
    Byte = 0x10,
}

/// What is done to a register, in 64 bits without sign.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Operation {
    Add = 0x00,
    Multiply = 0x20,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Set = 0xb0,
}

/// Whether a jump is made, by a register and a number.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Condition {
    Equal = 0x10,
    AnyBitOf = 0x40,
}

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A jump whose end is not there yet.
#[derive(Debug)]
#[must_use = "a jump has to end somewhere"]
pub(super) struct Jump(usize);

/// A program that is being written. It begins with the context in R6, which reading needs.
#[derive(Debug)]
pub(super) struct Program {
    instructions: Vec<Instruction>,
}

/// Instruction classes and modes, `BPF_…` of `linux/bpf_common.h` and `linux/bpf.h`.
const LD: u8 = 0x00;
const JMP: u8 = 0x05;
const ALU64: u8 = 0x07;
const IMM: u8 = 0x00;
const ABS: u8 = 0x20;
const IND: u8 = 0x40;
const DOUBLE_WORD: u8 = 0x18;
const FROM_REGISTER: u8 = 0x08;
const ALWAYS: u8 = 0x00;
const EXIT: u8 = 0x90;

impl Program {
    pub(super) fn new() -> Self {
        let mut program = Self {
            instructions: Vec::new(),
        };
        program.with(Operation::Set, R6, R1);
        program
    }

    /// R0 becomes what stands in the packet at `offset`.
    pub(super) fn read(&mut self, width: Width, offset: i32) {
        self.push(LD | ABS | width as u8, R0, R0, 0, offset);
    }

    /// R0 becomes what stands in the packet `offset` bytes behind where `base` says.
    pub(super) fn read_behind(&mut self, width: Width, base: Register, offset: i32) {
        self.push(LD | IND | width as u8, R0, base, 0, offset);
    }

    /// `to` becomes `to operation from`.
    pub(super) fn with(&mut self, operation: Operation, to: Register, from: Register) {
        let code = ALU64 | FROM_REGISTER | operation as u8;
        self.push(code, to, from, 0, 0);
    }

    /// `to` becomes `to operation number`.
    pub(super) fn with_number(&mut self, operation: Operation, to: Register, number: i32) {
        self.push(ALU64 | operation as u8, to, R0, 0, number);
    }

    /// `to` becomes a number of 64 bits, which takes the room of two instructions.
    pub(super) fn set(&mut self, to: Register, number: u64) {
        self.push(LD | IMM | DOUBLE_WORD, to, R0, 0, number as i32);
        self.push(0, R0, R0, 0, (number >> 32) as i32);
    }

    /// Goes on where the jump [lands](Self::land), if the condition holds.
    pub(super) fn jump_if(
        &mut self,
        register: Register,
        condition: Condition,
        number: i32,
    ) -> Jump {
        self.push(JMP | condition as u8, register, R0, 0, number);
        Jump(self.instructions.len() - 1)
    }

    /// Goes on where the jump [lands](Self::land).
    pub(super) fn jump(&mut self) -> Jump {
        self.push(JMP | ALWAYS, R0, R0, 0, 0);
        Jump(self.instructions.len() - 1)
    }

    /// A jump ends here.
    pub(super) fn land(&mut self, jump: Jump) {
        let skipped = self.instructions.len() - jump.0 - 1;
        self.instructions[jump.0].offset = skipped as i16;
    }

    /// The program ends with what is in R0.
    pub(super) fn exit(&mut self) {
        self.push(JMP | EXIT, R0, R0, 0, 0);
    }

    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) {
        let (to, from) = (to as u8, from as u8);
        self.instructions.push(Instruction {
            code,
            // Two fields of four bits, in the order in which the machine lays out bit fields.
            registers: if cfg!(target_endian = "little") {
                to | from << 4
            } else {
                to << 4 | from
            },
            offset,
            immediate,
        });
    }

    /// Gives the program to the kernel, as a socket filter.
    ///
    /// # Errors
    /// `EPERM` without `CAP_BPF`, `ENOSYS` where the kernel has no eBPF, `EINVAL` or `EACCES` when the verifier refuses it.
    pub(super) fn load(&self) -> io::Result<Loaded> {
        const SOCKET_FILTER: u32 = 1;
        // Programs that call no functions of the kernel may have any.
        let license = c"MIT OR Apache-2.0";
        let mut arguments = LoadArguments {
            kind: SOCKET_FILTER,
            instruction_count: self.instructions.len() as u32,
            instructions: self.instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log: [0; 4],
        };
        // SAFETY: `instructions` is so many live `bpf_insn`, `license` is a string with its zero, no log is asked for.
        let descriptor = unsafe { bpf(PROG_LOAD, &mut arguments) }?;
        // SAFETY: the descriptor was opened just now and belongs to nobody else.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
        Ok(Loaded { descriptor })
    }
}

/// A program that the kernel has taken. It goes when this is dropped, unless something uses it.
#[derive(Debug)]
pub(super) struct Loaded {
    descriptor: OwnedFd,
}

impl AsFd for Loaded {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest for zeros.
#[repr(C)]
struct LoadArguments {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    /// Level, size and buffer of the verifier's log.
    log: [u32; 4],
}

const PROG_LOAD: c_long = 5;

/// bpf(2).
///
/// # Safety
/// `arguments` must be what the kernel expects of `command`, and what it points to live.
unsafe fn bpf<T>(command: c_long, arguments: &mut T) -> io::Result<c_long> {
    let (arguments, size) = (std::ptr::from_mut(arguments), size_of::<T>());
    // SAFETY: the caller's promise; `size` is that of `arguments`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, arguments, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
impl Loaded {
    /// What the program ends with for an IP packet.
    pub(super) fn run(&self, packet: &[u8]) -> io::Result<u32> {
        use std::os::fd::AsRawFd as _;
        /// The beginning of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
        #[repr(C)]
        struct RunArguments {
            program: u32,
            result: u32,
            data_size: u32,
            data_out_size: u32,
            data: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
        }
        const PROG_TEST_RUN: c_long = 10;
        // The kernel wants an Ethernet header, which a socket filter does not see.
        let ether_type: [u8; 2] = if packet[0] >> 4 == 4 {
            [8, 0]
        } else {
            [0x86, 0xdd]
        };
        let frame = [&[0; 12], &ether_type[..], packet].concat();
        let mut arguments = RunArguments {
            program: self.descriptor.as_raw_fd() as u32,
            result: 0,
            data_size: frame.len() as u32,
            data_out_size: 0,
            data: frame.as_ptr() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
        };
        // SAFETY: `data` is so many live bytes, and nothing is to be written.
        unsafe { bpf(PROG_TEST_RUN, &mut arguments) }?;
        Ok(arguments.result)
    }
}
