//! The agent's side: answers about connections, each on its own thread, while packets pass.

use super::{Answer, Entry, Event, EventKind, Filter, Question, Usage};
use crate::agent::Clock;
use dataplane::conntrack::{self, EntryView, Listener, Statistics};
use dataplane::tuple::Timestamp;
use dataplane::worker::Shared;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Counters of one worker, as `conntrack -S` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatistics {
    /// Reply tuples that a choice of port found taken.
    pub found: u64,
    /// Packets of no connection.
    pub invalid: u64,
    /// Connections that could not be confirmed.
    pub insert_failed: u64,
    /// First packets dropped.
    pub drop: u64,
    /// Entries dropped early.
    pub early_drop: u64,
    /// ICMP messages of no connection.
    pub error: u64,
    /// First packets that adopted the entry of another one.
    pub clash_resolve: u64,
    /// Connections whose place in the index was full.
    pub chaintoolong: u64,
    /// First packets of sources that were at their limit.
    pub source_limit: u64,
}

/// Answers questions about the connections of a node.
#[derive(Clone, Debug)]
pub struct Responder {
    shared: Arc<Shared>,
    clock: Clock,
}

/// How long a listener to events is left alone when nothing happens.
const PAUSE: Duration = Duration::from_millis(10);

impl Responder {
    /// For the node that `shared` is of.
    pub(crate) fn new(shared: Arc<Shared>, clock: Clock) -> Self {
        Self { shared, clock }
    }

    /// Answers until all is said, or until who asked has gone.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn answer(&self, question: &Question, stream: &UnixStream) -> io::Result<()> {
        // Who reads slowly, reads slowly: this thread has nothing else to do.
        stream.set_write_timeout(None)?;
        let mut reply = Reply(BufWriter::with_capacity(1 << 17, stream));
        match question {
            Question::List(filter) => self.list(filter, &mut reply)?,
            Question::Get(filter) => self.get(filter, &mut reply)?,
            Question::Delete(filter) => self.delete(filter, &mut reply)?,
            Question::Flush => self.delete(&Filter::default(), &mut reply)?,
            Question::Count => reply.say(&Answer::Count(self.shared.conntrack.len()))?,
            Question::Statistics => {
                let workers = self.shared.conntrack.statistics();
                let workers = workers.iter().map(WorkerStatistics::from).collect();
                reply.say(&Answer::Statistics(workers))?;
            }
            Question::Events(filter, kinds) => self.events(filter, kinds, stream, &mut reply)?,
            Question::Usage(by) => {
                let facts = self.shared.facts.load();
                let (reserved, names) = (&facts.reserved_ports, self.service_names());
                let conntrack = &self.shared.conntrack;
                let usage = Usage::count(conntrack, self.clock.now(), *by, reserved, &names);
                reply.say(&Answer::Usage(usage))?;
            }
        }
        reply.say(&Answer::End)?;
        reply.0.flush()
    }

    fn list(&self, filter: &Filter, reply: &mut Reply<'_>) -> io::Result<()> {
        let names = self.service_names();
        let mut result = Ok(());
        self.shared.conntrack.for_each(self.clock.now(), |entry| {
            if result.is_ok() && filter.matches(entry) {
                result = reply.say(&Answer::Entry(describe(entry, &names)));
            }
        });
        result
    }

    fn get(&self, filter: &Filter, reply: &mut Reply<'_>) -> io::Result<()> {
        let names = self.service_names();
        let now = self.clock.now();
        let found = filter
            .tuple()
            .and_then(|tuple| self.shared.conntrack.get(&tuple, now));
        found.map_or(Ok(()), |entry| {
            reply.say(&Answer::Entry(describe(&entry, &names)))
        })
    }

    /// All that match go, also when who asked for it does not stay to see them.
    fn delete(&self, filter: &Filter, reply: &mut Reply<'_>) -> io::Result<()> {
        let names = self.service_names();
        let mut result = Ok(());
        self.shared.conntrack.remove_each(
            self.clock.now(),
            |entry| filter.matches(entry),
            |entry| {
                if result.is_ok() {
                    result = reply.say(&Answer::Entry(describe(entry, &names)));
                }
            },
        );
        result
    }

    fn events(
        &self,
        filter: &Filter,
        kinds: &[EventKind],
        mut stream: &UnixStream,
        reply: &mut Reply<'_>,
    ) -> io::Result<()> {
        let listener = self.shared.conntrack.listen();
        let start = self.start_of_clock();
        stream.set_read_timeout(Some(PAUSE))?;
        loop {
            self.pass_on(&listener, filter, kinds, start, reply)?;
            reply.0.flush()?;
            match stream.read(&mut [0]) {
                Err(error) if is_timeout(&error) => {}
                // Who asked says nothing more: this is the end.
                _ => return Ok(()),
            }
        }
    }

    fn pass_on(
        &self,
        listener: &Listener<'_>,
        filter: &Filter,
        kinds: &[EventKind],
        start: Duration,
        reply: &mut Reply<'_>,
    ) -> io::Result<()> {
        // Names may change while somebody listens.
        let mut names = None;
        while let Some(event) = listener.next() {
            let (kind, by_user) = kind(event.kind);
            if !kinds.contains(&kind) || !filter.matches(&event.entry) {
                continue;
            }
            let names = names.get_or_insert_with(|| self.service_names());
            reply.say(&Answer::Event(Event {
                event: kind,
                timestamp_microseconds: (start + since_start(event.at)).as_micros() as u64,
                by_user,
                entry: describe(&event.entry, names),
            }))?;
        }
        match listener.lost() {
            0 => Ok(()),
            lost => reply.say(&Answer::Lost(lost)),
        }
    }

    fn service_names(&self) -> HashMap<u64, String> {
        let services = self.shared.services.load();
        let names = (0u32..).zip(services.services());
        names
            .map(|(index, service)| {
                let index = dataplane::service::ServiceIndex(index);
                (services.service_id(index), service.name.to_string())
            })
            .collect()
    }

    /// When the node's clock was started, since 1970.
    fn start_of_clock(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap_or_default()
            .saturating_sub(since_start(self.clock.now()))
    }
}

const fn since_start(at: Timestamp) -> Duration {
    Duration::from_nanos(at.0)
}

fn describe(entry: &EntryView, names: &HashMap<u64, String>) -> Entry {
    let service = entry.service.and_then(|tag| names.get(&tag.service()?));
    Entry::new(entry, service.map(String::as_str))
}

const fn kind(kind: conntrack::EventKind) -> (EventKind, bool) {
    match kind {
        conntrack::EventKind::New => (EventKind::New, false),
        conntrack::EventKind::Update => (EventKind::Update, false),
        conntrack::EventKind::Destroy { by_user } => (EventKind::Destroy, by_user),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

struct Reply<'s>(BufWriter<&'s UnixStream>);

impl Reply<'_> {
    fn say(&mut self, answer: &Answer) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, answer)?;
        self.0.write_all(b"\n")
    }
}

impl From<&Statistics> for WorkerStatistics {
    fn from(worker: &Statistics) -> Self {
        Self {
            found: worker.found,
            invalid: worker.invalid,
            insert_failed: worker.insert_failed,
            drop: worker.drop,
            early_drop: worker.early_drop,
            error: worker.error,
            clash_resolve: worker.clash_resolve,
            chaintoolong: worker.chain_too_long,
            source_limit: worker.source_limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::Family;
    use dataplane::conntrack::{Conntrack, Headers, Settings, Transport};
    use dataplane::service::ServiceTable;
    use dataplane::tuple::{Address, Protocol, Tuple};
    use std::io::{BufRead as _, BufReader};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

    fn udp(number: u32) -> Headers {
        let tuple = Tuple {
            source: Address::from_v4((0x0a00_0000 + number).to_be_bytes()),
            destination: Address::from_v4([10, 96, 0, 10]),
            source_port: 4000,
            destination_port: 53,
            protocol: Protocol::UDP,
        };
        Headers {
            tuple,
            transport: Transport::Udp,
            length: 60,
        }
    }

    fn packet(conntrack: &Conntrack, number: u32, now: Timestamp) {
        let headers = udp(number);
        match conntrack.find(&headers.tuple, now) {
            Some(found) => drop(conntrack.track(&found, &headers, now)),
            None => {
                let tentative = conntrack.open(&headers, now).expect("UDP opens");
                let _ = conntrack.confirm(&tentative, now).expect("room");
            }
        }
    }

    fn responder(entries: u32) -> Responder {
        let clock = Clock::start();
        let settings = Settings::kernel(entries as usize + 1000);
        let conntrack = Conntrack::new(settings, [1, 2, 3, 4]);
        (0..entries).for_each(|number| packet(&conntrack, number, clock.now()));
        let shared = Shared::new(conntrack, ServiceTable::empty());
        Responder::new(Arc::new(shared), clock)
    }

    fn answers(responder: &Responder, question: Question) -> Vec<Answer> {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let responder = responder.clone();
        let answering = std::thread::spawn(move || responder.answer(&question, &ours));
        let lines = BufReader::new(theirs).lines();
        let answers: Vec<Answer> = lines
            .map(|line| serde_json::from_str(&line.expect("text")).expect("an answer"))
            .collect();
        answering.join().expect("no panic").expect("answered");
        assert!(matches!(answers.last(), Some(Answer::End)));
        answers
    }

    /// All entries are listed, each once, while packets of them pass. `LIST_ENTRIES=1000000` lists a million.
    #[test]
    fn lists_while_packets_pass() {
        let entries =
            std::env::var("LIST_ENTRIES").map_or(50_000, |n| n.parse().expect("a number"));
        let responder = responder(entries);
        let (is_over, packets) = (AtomicBool::new(false), AtomicU64::new(0));
        let start = std::time::Instant::now();
        let listed = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    let number = packets.fetch_add(1, Relaxed) as u32 % entries;
                    packet(&responder.shared.conntrack, number, responder.clock.now());
                }
            });
            let listed = answers(&responder, Question::List(Filter::default()));
            is_over.store(true, Relaxed);
            listed
        });
        println!(
            "{entries} entries listed in {:?} while {} packets passed",
            start.elapsed(),
            packets.load(Relaxed)
        );
        assert_eq!(listed.len(), entries as usize + 1);
        assert!(packets.load(Relaxed) > 0);
    }

    /// Filters act in the agent, for lists as for deletion.
    #[test]
    fn filters() {
        let responder = responder(100);
        let filter = |source: &str| Filter {
            original: crate::conntrack::SideFilter {
                source: Some(source.parse().expect(source)),
                ..Default::default()
            },
            ..Default::default()
        };
        let few = || Question::List(filter("10.0.0.0/29"));
        assert_eq!(answers(&responder, few()).len(), 8 + 1);
        let deleted = answers(&responder, Question::Delete(filter("10.0.0.4/30")));
        assert_eq!(deleted.len(), 4 + 1);
        assert_eq!(answers(&responder, few()).len(), 4 + 1);
        let ipv6 = Filter {
            family: Some(Family::Ipv6),
            ..Default::default()
        };
        assert_eq!(answers(&responder, Question::List(ipv6)).len(), 1);
        let translated = Filter {
            source_nat: Some(Default::default()),
            ..Default::default()
        };
        let question = Question::List(translated);
        let sent = serde_json::to_string(&question).expect("JSON");
        let question = serde_json::from_str(&sent).expect("as it was sent");
        assert_eq!(answers(&responder, question).len(), 1, "none is translated");
        let count = answers(&responder, Question::Count);
        assert!(matches!(count[0], Answer::Count(96)), "{count:?}");
    }
}
