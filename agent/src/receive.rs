//! Turns records from the kernel into operations and steps in the life of workers.
//!
//! Pure but for the table of exceptions that were announced and not yet named by an operation, which is bounded.

use std::collections::HashMap;
use std::sync::Arc;

use cadscope_common::record::{
    self, Exception, Life, OPERATION_BARE_BYTES, OPERATION_HEAD_BYTES, OutOfMemory, ProcessKey, Resident,
    ended_by, record_kind,
};
use cadscope_common::tls::Exchange;

use crate::catalog::{Layout, Probe, demangle_type, printable};
use crate::ending::{self, Limit};
use crate::kernel::plain;
use crate::memory::Memory;
use crate::operation::{Operation, Outcome, Texts, Worker};

/// Threads whose last exception is remembered.
const MAX_EXCEPTIONS: usize = 4096;

/// Why a record was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Shorter than its kind says.
    #[error("truncated")]
    Truncated,
    /// Of no known kind.
    #[error("unknown kind")]
    UnknownKind,
    /// Of a probe program that is not in use.
    #[error("unknown probe")]
    UnknownProbe,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// A call ended.
    Ended(&'a record::Operation),
    /// An exception is announced.
    Thrown(Exception),
    /// A worker forked.
    Forked {
        /// The parent.
        parent: ProcessKey,
        /// The child.
        child: ProcessKey,
    },
    /// A worker replaced its program at this time.
    Executed(ProcessKey, u64),
    /// A worker ended.
    Exited(Box<Life>),
    /// A worker's memory is about to change.
    Resident(Resident),
    /// A process is killed because memory ran out.
    OutOfMemory(OutOfMemory),
    /// A request over TLS was answered, or will not be.
    Exchanged(Box<Exchange>),
}

/// Where one record of an operation is held while it is looked at.
#[derive(Debug, Default)]
pub struct Room(Option<record::Operation>);

/// Reads one record; one of an operation into `room`.
///
/// # Errors
/// It is not one.
pub fn read<'a>(bytes: &[u8], room: &'a mut Room) -> Result<Event<'a>, Unreadable> {
    let kind = bytes.get(..4).and_then(|kind| kind.try_into().ok()).map(u32::from_ne_bytes);
    match kind.ok_or(Unreadable::Truncated)? {
        record_kind::OPERATION => {
            if bytes.len() < OPERATION_BARE_BYTES {
                return Err(Unreadable::Truncated);
            }
            // Records are cut after what they hold; what is missing is zero.
            let mut whole = [0_u8; size_of::<record::Operation>()];
            let held = bytes.get(..bytes.len().min(whole.len())).unwrap_or_default();
            whole.get_mut(..held.len()).ok_or(Unreadable::Truncated)?.copy_from_slice(held);
            let mut operation: record::Operation = plain::read(&whole).ok_or(Unreadable::Truncated)?;
            if bytes.len() < OPERATION_HEAD_BYTES {
                operation.unread = u16::MAX;
            }
            Ok(Event::Ended(room.0.insert(operation)))
        }
        record_kind::EXCEPTION => plain::read(bytes).map(Event::Thrown).ok_or(Unreadable::Truncated),
        kind @ (record_kind::FORK | record_kind::EXEC | record_kind::EXIT) => {
            let life: Life = plain::read(bytes).ok_or(Unreadable::Truncated)?;
            Ok(match kind {
                record_kind::FORK => Event::Forked { parent: life.process, child: life.child },
                record_kind::EXEC => Event::Executed(life.process, life.at_ns),
                _ => Event::Exited(Box::new(life)),
            })
        }
        record_kind::RESIDENT => plain::read(bytes).map(Event::Resident).ok_or(Unreadable::Truncated),
        record_kind::OUT_OF_MEMORY => plain::read(bytes).map(Event::OutOfMemory).ok_or(Unreadable::Truncated),
        record_kind::EXCHANGE => plain::read(bytes)
            .map(|exchange| Event::Exchanged(Box::new(exchange)))
            .ok_or(Unreadable::Truncated),
        _ => Err(Unreadable::UnknownKind),
    }
}

/// The last exception of each thread, announced before the operations that it ended.
#[derive(Debug, Default)]
pub struct Exceptions {
    by_thread: HashMap<u32, (u64, Option<Arc<str>>)>,
}

impl Exceptions {
    /// Notes an exception.
    pub fn announce(&mut self, exception: &Exception) {
        if self.by_thread.len() >= MAX_EXCEPTIONS {
            self.by_thread.clear();
        }
        let end = exception.type_name.iter().position(|byte| *byte == 0).unwrap_or(exception.type_name.len());
        let name = exception.type_name.get(..end).filter(|name| !name.is_empty());
        let name = name.map(|name| Arc::from(demangle_type(&printable(name)).as_str()));
        self.by_thread.insert(exception.tid, (exception.id, name));
    }

    fn name(&self, tid: u32, id: u64) -> Option<Arc<str>> {
        self.by_thread.get(&tid).filter(|(known, _)| *known == id).and_then(|(_, name)| name.clone())
    }
}

/// Makes the operation of a record.
#[must_use]
pub fn operation(
    record: &record::Operation,
    probe: &Arc<Probe>,
    layout: Option<&Layout>,
    worker: Arc<Worker>,
    exceptions: &Exceptions,
    texts: &mut Texts,
) -> Operation {
    let text_len = usize::try_from(record.text_len).unwrap_or(0).min(record.text.len());
    let text = record.text.get(..text_len).unwrap_or_default();
    let values = layout.map(|layout| probe.decode(layout, record, text, texts)).unwrap_or_default();
    let (outcome, ended_by) = match record.ended_by {
        ended_by::RETURN => (probe.outcome(&values), "return"),
        ended_by::EXCEPTION => (Outcome::Exception, "exception"),
        ended_by::THREAD_EXIT => (Outcome::Killed, "thread_exit"),
        ended_by::PROCESS_EXIT => (Outcome::Killed, "process_exit"),
        ended_by::SIGNAL => (Outcome::Killed, "signal"),
        ended_by::EXEC => (Outcome::Killed, "exec"),
        _ => (Outcome::Error, "jump"),
    };
    Operation {
        probe: Arc::clone(probe),
        worker,
        tid: record.tid,
        depth: record.depth,
        start_ns: record.start_ns,
        end_ns: record.end_ns,
        parent_start_ns: (record.parent_start_ns != 0).then_some(record.parent_start_ns),
        outcome,
        ended_by,
        exception: (record.exception != 0).then(|| exceptions.name(record.tid, record.exception)).flatten(),
        source: None,
        signal: (record.signal != 0).then_some(record.signal),
        values,
        memory: memory(record),
        file: None,
    }
}

/// What the kernel said when it chose a process to kill; what the process was doing is not known yet.
#[must_use]
pub fn out_of_memory(record: &OutOfMemory) -> ending::OutOfMemory {
    let bytes = |pages: u64| pages.saturating_mul(procfs::page_size());
    let limit = if record.level == record::NO_LIMIT {
        Limit::Node
    } else {
        Limit::Cgroup { level: record.level, bytes: bytes(record.limit_pages) }
    };
    ending::OutOfMemory {
        at_ns: record.at_ns,
        resident_bytes: bytes(record.pages),
        limit,
        operation: String::new(),
    }
}

/// What the record says itself; a peak in between that was sent apart is not known here.
fn memory(record: &record::Operation) -> Option<Memory> {
    let bytes = |pages: u32| u64::from(pages).saturating_mul(procfs::page_size());
    (record.entry_pages != 0).then(|| Memory {
        entry_bytes: bytes(record.entry_pages),
        exit_bytes: (record.exit_pages != 0).then(|| bytes(record.exit_pages)),
        peak_bytes: bytes(record.entry_pages.max(record.exit_pages).max(record.peak_pages)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_cut_or_of_no_kind_is_refused() {
        assert_eq!(read(&[], &mut Room::default()), Err(Unreadable::Truncated));
        assert_eq!(read(&1_u32.to_ne_bytes(), &mut Room::default()), Err(Unreadable::Truncated));
        assert_eq!(read(&99_u32.to_ne_bytes(), &mut Room::default()), Err(Unreadable::UnknownKind));
        assert_eq!(read(&record_kind::EXIT.to_ne_bytes(), &mut Room::default()), Err(Unreadable::Truncated));
    }

    #[test]
    fn a_record_without_values_has_none_of_them_read() {
        let mut bytes = vec![0; OPERATION_BARE_BYTES];
        bytes[..4].copy_from_slice(&record_kind::OPERATION.to_ne_bytes());
        let mut room = Room::default();
        let Ok(Event::Ended(operation)) = read(&bytes, &mut room) else { panic!("no operation") };
        assert_eq!(operation.unread, u16::MAX);
    }

    #[test]
    fn the_machines_memory_is_told_from_a_cgroups_limit() {
        let record = |level| OutOfMemory {
            kind: record_kind::OUT_OF_MEMORY,
            level,
            process: ProcessKey::default(),
            at_ns: 7,
            pages: 3,
            limit_pages: 2,
            asking_pid: 1,
            padding: 0,
        };
        let page = procfs::page_size();
        let own = out_of_memory(&record(0));
        assert_eq!((own.limit, own.resident_bytes), (Limit::Cgroup { level: 0, bytes: 2 * page }, 3 * page));
        assert_eq!(out_of_memory(&record(2)).limit, Limit::Cgroup { level: 2, bytes: 2 * page });
        assert_eq!(out_of_memory(&record(record::NO_LIMIT)).limit, Limit::Node);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let _ = read(&bytes, &mut Room::default());
        }
    }
}
