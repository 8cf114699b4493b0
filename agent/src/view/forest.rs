//! Turns operations into nested, folded rows.
//!
//! An operation stands below the one that was open around it on its thread. A parent that was not seen (it was open
//! before the first probe, or its record was lost) leaves its children at the top, marked as orphans. Nesting deeper
//! than [`DEPTH`] is flattened.

use std::collections::{BTreeMap, HashMap};

use crate::operation::{Operation, Outcome};

/// Deepest nesting kept.
const DEPTH: usize = 64;
/// Fewest rows that are folded into one.
const FOLDED: usize = 5;

/// An operation with those inside it, by start.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) operation: &'a Operation,
    pub(super) children: Vec<Node<'a>>,
    /// It had a parent that was not seen.
    pub(super) orphan: bool,
}

/// A row, or several rows as one.
#[derive(Debug)]
pub(super) enum Row<'n, 'a> {
    One(&'n Node<'a>),
    Folded(Vec<&'n Node<'a>>),
}

impl Row<'_, '_> {
    pub(super) fn first(&self) -> Option<&Operation> {
        match self {
            Self::One(node) => Some(node.operation),
            Self::Folded(nodes) => nodes.first().map(|node| node.operation),
        }
    }
}

pub(super) fn duration_ns(operation: &Operation) -> u64 {
    operation.end_ns.saturating_sub(operation.start_ns)
}

impl Node<'_> {
    /// Its time without that of the operations directly inside it.
    pub(super) fn self_ns(&self) -> u64 {
        let inside =
            self.children.iter().map(|child| duration_ns(child.operation)).fold(0, u64::saturating_add);
        duration_ns(self.operation).saturating_sub(inside)
    }

    /// Calls `visit` for each operation inside it.
    pub(super) fn inside(&self, visit: &mut impl FnMut(&Operation)) {
        for child in &self.children {
            visit(child.operation);
            child.inside(visit);
        }
    }

    fn holds_killed(&self) -> bool {
        let mut killed = self.operation.outcome == Outcome::Killed;
        self.inside(&mut |operation| killed |= operation.outcome == Outcome::Killed);
        killed
    }
}

/// The operations of one worker, nested.
pub(super) fn nest<'a>(operations: &[&'a Operation]) -> Vec<Node<'a>> {
    let mut sorted = operations.to_vec();
    sorted.sort_by_key(|operation| (operation.start_ns, operation.depth, operation.tid));
    // Parents begin before their children: they are placed when these come. Places are positions in `sorted`.
    let mut places: HashMap<(u32, u64), Place> = HashMap::new();
    let mut children: BTreeMap<Option<usize>, Vec<(usize, &'a Operation, bool)>> = BTreeMap::new();
    for (position, operation) in sorted.into_iter().enumerate() {
        let around = operation.parent_start_ns.filter(|start| *start < operation.start_ns);
        let around = around.and_then(|start| places.get(&(operation.tid, start)).copied());
        let place = match around {
            Some(around) if around.depth + 1 >= DEPTH => {
                Place { position, depth: around.depth, parent: around.parent }
            }
            Some(around) => Place { position, depth: around.depth + 1, parent: Some(around.position) },
            None => Place { position, depth: 0, parent: None },
        };
        let orphan = around.is_none() && operation.parent_start_ns.is_some();
        children.entry(place.parent).or_default().push((position, operation, orphan));
        places.entry((operation.tid, operation.start_ns)).or_insert(place);
    }
    take(None, &mut children)
}

#[derive(Clone, Copy)]
struct Place {
    position: usize,
    depth: usize,
    parent: Option<usize>,
}

fn take<'a>(
    parent: Option<usize>,
    children: &mut BTreeMap<Option<usize>, Vec<(usize, &'a Operation, bool)>>,
) -> Vec<Node<'a>> {
    let own = children.remove(&parent).unwrap_or_default();
    own.into_iter()
        .map(|(position, operation, orphan)| Node {
            operation,
            children: take(Some(position), children),
            orphan,
        })
        .collect()
}

/// Siblings as rows. Among neighbours that are all shorter than `short_ns`, five and more of one probe and outcome
/// become one row, where the first of them stood; a row that ended with its process never hides in one.
pub(super) fn fold<'n, 'a>(siblings: &'n [Node<'a>], short_ns: u64) -> Vec<Row<'n, 'a>> {
    let mut rows = Vec::new();
    for run in siblings
        .chunk_by(|one, next| duration_ns(one.operation) < short_ns && duration_ns(next.operation) < short_ns)
    {
        let mut groups: HashMap<_, Vec<&'n Node<'a>>> = HashMap::new();
        for node in run.iter().filter(|node| !node.holds_killed()) {
            groups.entry(key(node)).or_default().push(node);
        }
        groups.retain(|_, nodes| nodes.len() >= FOLDED);
        for node in run {
            match groups.get_mut(&key(node)).filter(|_| !node.holds_killed()) {
                // The first one takes all; for the others the group is empty.
                Some(nodes) if nodes.is_empty() => {}
                Some(nodes) => rows.push(Row::Folded(std::mem::take(nodes))),
                None => rows.push(Row::One(node)),
            }
        }
    }
    rows
}

/// What rows must share to be folded.
fn key<'a>(node: &Node<'a>) -> (&'a str, Outcome, u32) {
    (&node.operation.probe.id, node.operation.outcome, node.operation.tid)
}
