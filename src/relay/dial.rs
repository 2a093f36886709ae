//! From the smarthost's name to connections that can be greeted (RFC 5321 §5.1): addresses in their order, each begun a
//! little after the one before (RFC 8305 §5).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

use super::addresses::Candidate;
use super::log::LOG;
use crate::open_files;
use crate::outcome::{Cause, Reason};

/// After this long without an answer the next address is tried beside the one before (RFC 8305 §8).
const STAGGER: Duration = Duration::from_millis(250);

/// Connections to the smarthost leave room for this many files: for databases, the ledger, the status file and those that
/// ask for it over HTTP. Without them mails would go out whose rows cannot be deleted.
const SPARE: usize = 8;

/// A host's name, or an address without the brackets that URLs have around it.
pub(super) fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Asks the system's resolver. An address stands for itself.
pub(super) async fn resolve(host: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, Cause> {
    match timeout(limit, lookup_host((without_brackets(host), port))).await {
        Ok(Ok(found)) => Ok(found.collect()),
        // The resolver opens files too, and does not say that it could not.
        Ok(Err(_)) if open_files::is_reached() => Err(Cause::OpenFiles(open_files::explanation())),
        Ok(Err(error)) => Err(not_found(format!("{host} was not found: {error}"))),
        Err(_) => Err(not_found(format!("{host} was not found in time"))),
    }
}

fn not_found(how: String) -> Cause {
    Cause::Local(Reason::RelayUnavailable, how)
}

/// Connections as they come up, in no promised order.
pub(super) struct Dialing {
    waiting: VecDeque<Candidate>,
    under_way: FuturesUnordered<BoxFuture<'static, (SocketAddr, Result<TcpStream, Cause>)>>,
    limit: Duration,
}

impl Dialing {
    /// `limit` is for each address.
    pub fn new(candidates: Vec<Candidate>, limit: Duration) -> Self {
        Self { waiting: candidates.into(), under_way: FuturesUnordered::new(), limit }
    }

    /// The next connection that is made or has failed; `None` when no address is left. What is under way when the last
    /// one is taken goes on, and is given up when this is dropped.
    pub async fn next(&mut self) -> Option<(SocketAddr, Result<TcpStream, Cause>)> {
        if self.under_way.is_empty() {
            self.begin();
        }
        loop {
            let next_may_begin = self.waiting.front().is_some_and(|next| !next.is_last_resort);
            tokio::select! {
                biased;
                done = self.under_way.next() => return done,
                () = sleep(STAGGER), if next_may_begin => self.begin(),
            }
        }
    }

    fn begin(&mut self) {
        let Some(Candidate { address, .. }) = self.waiting.pop_front() else { return };
        let limit = self.limit;
        self.under_way.push(Box::pin(async move {
            if !open_files::have_room_for(SPARE) {
                return (address, Err(Cause::OpenFiles(open_files::explanation())));
            }
            let connected = match timeout(limit, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // A write of ours is a whole flight; waiting for more would only cost the peer's delayed ACK.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(target: LOG, peer = %address, "TCP_NODELAY cannot be set: {error}");
                    }
                    Ok(stream)
                }
                Ok(Err(error)) if open_files::is_limit(&error) => Err(Cause::OpenFiles(open_files::explanation())),
                Ok(Err(error)) => Err(Cause::Closed(error.to_string())),
                Err(_) => Err(Cause::Closed("no answer in time".to_owned())),
            };
            (address, connected)
        }));
    }
}
