//! Makes sockets in another network namespace, for servers that run there.

use std::fs::File;
use std::path::Path;

use anyhow::{Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Does it in this network, or in the own one. A socket stays in the network in which it was made.
///
/// # Errors
/// There is no such network, or it failed.
pub fn inside<T: Send>(network: Option<&Path>, make: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(network) = network else { return make() };
    // Of this thread alone.
    let work = || {
        setns(File::open(network)?, CloneFlags::CLONE_NEWNET)?;
        make()
    };
    std::thread::scope(|scope| scope.spawn(work).join().map_err(|_| anyhow!("a thread panicked"))?)
}
