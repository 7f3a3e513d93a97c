//! Questions by datagram to the server of a bench's lab: who it is, and how many datagrams it got.

use super::server::{HOW_MANY, WHO, Who};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Asks who answers, by a flow of its own.
fn question(target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    socket.send(WHO)?;
    Ok(socket)
}

fn answer_to(question: &UdpSocket) -> io::Result<Who> {
    let mut answer = [0; Who::LENGTH];
    match question.recv(&mut answer)? {
        Who::LENGTH => Ok(Who::from_bytes(answer)),
        _ => Err(io::Error::other("an answer of another length")),
    }
}

/// Which server new flows get to, when they get to one.
pub(super) fn wait_for_any(target: SocketAddr) -> io::Result<u32> {
    let answers = ask(target, |_| true)?;
    let mut servers = answers.iter().map(|who| who.server);
    servers
        .next()
        .ok_or_else(|| no_answer("nobody says which server it is"))
}

/// When the first question of a new flow arrived at another server than `before`. They are asked one after the other from
/// now on. An answer may be lost, as its flow ends when its endpoint goes: no question waits for the one before.
pub(super) fn first_arrival_elsewhere(target: SocketAddr, before: u32) -> io::Result<Duration> {
    let elsewhere = ask(target, |who| who.server != before)?;
    let arrivals = elsewhere.iter().map(|who| who.arrived);
    arrivals
        .min()
        .ok_or_else(|| no_answer("the change took no effect"))
}

/// Asks again and again until an answer is `wanted`. All such answers that are there then, or none when none comes.
fn ask(target: SocketAddr, wanted: impl Fn(Who) -> bool) -> io::Result<Vec<Who>> {
    const OPEN: usize = 64;
    const EVERY: Duration = Duration::from_micros(100);
    // As it is, a wait takes half as long again.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut open = Vec::new();
    let mut next = Instant::now();
    while next < deadline {
        if open.len() == OPEN {
            open.remove(0);
        }
        open.push(question(target)?);
        next += EVERY;
        next = next.max(Instant::now());
        loop {
            let found = take_answers(&mut open, &wanted);
            if !found.is_empty() {
                return Ok(found);
            }
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            wait_for_answer(&open, left)?;
        }
    }
    Ok(Vec::new())
}

/// Those that are `wanted`. What was answered is open no more.
fn take_answers(open: &mut Vec<UdpSocket>, wanted: impl Fn(Who) -> bool) -> Vec<Who> {
    let mut found = Vec::new();
    open.retain(|question| {
        let answer = answer_to(question);
        found.extend(answer.iter().copied().filter(|who| wanted(*who)));
        answer.is_err()
    });
    found
}

fn wait_for_answer(open: &[UdpSocket], at_most: Duration) -> io::Result<()> {
    let polled = |question| PollFd::new(question, PollFlags::IN);
    let mut polled: Vec<PollFd<'_>> = open.iter().map(polled).collect();
    let at_most = Timespec {
        tv_sec: 0,
        tv_nsec: at_most.subsec_nanos().into(),
    };
    match poll(&mut polled, Some(&at_most)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn no_answer(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Asks until an answer comes: the question may be lost in a queue that is full.
pub(super) fn how_many(socket: &UdpSocket) -> io::Result<u64> {
    const TRIES: usize = 5;
    let mut answer = [0; 8];
    for _ in 0..TRIES {
        std::thread::sleep(Duration::from_millis(20));
        socket.send(HOW_MANY)?;
        match socket.recv(&mut answer) {
            Ok(8) => return Ok(u64::from_be_bytes(answer)),
            Ok(_) => return Err(io::Error::other("an answer of another length")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(no_answer("no answer to how many packets arrived"))
}
