//! One walk down the rendezvous order: who is asked, when another one is, and whose answer counts.
//!
//! ```text
//! owner ─┬─ later than nearly all answers: the next one too, for what is on its disk
//!        ├─ a second of silence: is it alive? no word within another one ─► the next one in its place
//!        └─ alive: it may be fetching; its answer is waited for, and if that is "later", it is asked again after a pause
//! ```
//!
//! The first whole answer counts; requests that are under way then are dropped with their connections.

use super::{
    Fetched, Inner, ReadError,
    http::{Failure, Want},
};
use crate::{ObjectRef, Roster, Source};
use ::http::StatusCode;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use std::{net::SocketAddr, ops::Range, sync::Arc};
use tokio::time::Instant;

/// Answers with an origin failure after which a round ends: more nodes asking the same broken origin help nobody.
const ORIGIN_FAILURES: usize = 2;
/// Members that the origin denies the object after which a round ends: all have the same keys, but one may not have the newest.
const ORIGIN_DENIALS: usize = 2;
/// Members that refuse this process after which the read ends: all of them judge by the same rules, but one may have lost its own
/// certificate.
const DENIALS: usize = 2;
/// Other members asked for an old copy on their disk when the object changed at the origin.
const OLD_COPY_ASKS: usize = 4;

/// A member that can be asked.
#[derive(Clone)]
struct Candidate {
    node: String,
    address: SocketAddr,
}

enum Event {
    Answer { place: usize, hedge: bool, took: std::time::Duration, answer: Result<(Source, Bytes), Failure> },
    Alive { place: usize, alive: bool },
}

pub(super) struct Round<'a> {
    client: &'a Arc<Inner>,
    object: &'a ObjectRef<'a>,
    range: &'a Range<u64>,
    last: &'a mut Vec<String>,
    /// In rendezvous order; those that cannot be asked just now are left out.
    candidates: Vec<Candidate>,
    /// Is the first of them the owner? If not, already that one stands in.
    owner_first: bool,
    under_way: FuturesUnordered<BoxFuture<'a, Event>>,
    /// The one that is waited for, and since when.
    main: Option<(usize, Instant)>,
    next: usize,
    hedged: bool,
    /// A second node was asked for the same bytes.
    twice: bool,
    probed: Option<usize>,
    changed: Option<String>,
    old_copy_asks: usize,
    origin_failures: usize,
    origin_denials: Vec<String>,
    /// Members that did not give the bytes, and what those of them said that refuse this process.
    failures: usize,
    denials: Vec<String>,
    /// The one that was waited for is at it: it is asked again, after a pause.
    later: bool,
}

impl<'a> Round<'a> {
    pub(super) fn new(
        client: &'a Arc<Inner>,
        roster: &Roster,
        object: &'a ObjectRef<'a>,
        range: &'a Range<u64>,
        last: &'a mut Vec<String>,
    ) -> Self {
        last.clear();
        let mut candidates = Vec::new();
        let mut owner_first = false;
        let order = roster.members.order(&roster.members.place(&object.key, range.start));
        for (place, member) in order.into_iter().enumerate() {
            let node = member.node.as_str();
            let Some(ip) = roster.addresses.get(node) else {
                last.push(format!("{node}: has no worker just now"));
                continue;
            };
            let address = SocketAddr::new(*ip, client.options.port);
            if client.down.is(address) {
                last.push(format!("{node}: did not answer a moment ago"));
                continue;
            }
            owner_first |= place == 0;
            candidates.push(Candidate { node: node.to_owned(), address });
        }
        Self {
            client,
            object,
            range,
            last,
            candidates,
            owner_first,
            under_way: FuturesUnordered::new(),
            main: None,
            next: 0,
            hedged: false,
            twice: false,
            probed: None,
            changed: None,
            old_copy_asks: 0,
            origin_failures: 0,
            origin_denials: Vec::new(),
            failures: 0,
            denials: Vec::new(),
            later: false,
        }
    }

    /// `None`: nobody could, try again later.
    pub(super) async fn run(mut self) -> Option<Result<Fetched, ReadError>> {
        self.ask_next();
        let late = self.client.hedging.late(self.len());
        loop {
            let hedge_at =
                self.main.filter(|_| !self.hedged && self.next < self.candidates.len()).map(|(_, since)| since + late);
            let probe_at =
                self.main.filter(|(place, _)| self.probed != Some(*place)).map(|(_, at)| at + self.client.options.quiet);
            let timer = async {
                match (hedge_at, probe_at) {
                    (Some(a), Some(b)) => tokio::time::sleep_until(a.min(b)).await,
                    (Some(at), None) | (None, Some(at)) => tokio::time::sleep_until(at).await,
                    (None, None) => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = self.under_way.next() => match event {
                    Some(event) => event,
                    None => break,
                },
                () = timer => {
                    let now = Instant::now();
                    if hedge_at.is_some_and(|at| at <= now) {
                        self.hedge();
                    }
                    if probe_at.is_some_and(|at| at <= now) {
                        self.probe();
                    }
                    continue;
                }
            };
            match event {
                Event::Answer { place, hedge, took, answer: Ok((source, bytes)) } => {
                    return Some(Ok(self.won(place, hedge, took, source, bytes)));
                }
                // It was asked for what it had at hand; that it has nothing says nothing.
                Event::Answer { hedge: true, .. } | Event::Alive { alive: true, .. } => {}
                Event::Answer { place, answer: Err(failure), .. } => {
                    if let Some(error) = self.failed(place, failure) {
                        return Some(Err(error));
                    }
                    if self.later {
                        return None;
                    }
                }
                Event::Alive { place, alive: false } => {
                    let Candidate { node, address } = &self.candidates[place];
                    self.client.down.silent(*address);
                    self.last.push(format!("{node}: gave no sign of life"));
                    if self.waits_for(place) {
                        self.twice = true;
                        self.ask_next();
                    }
                }
            }
        }
        let key = self.object.key.to_string();
        if let Some(detail) = self.changed {
            return Some(Err(ReadError::Changed { key, detail }));
        }
        if let Some(detail) = self.origin_denials.pop() {
            return Some(Err(ReadError::OriginDenied { key, detail }));
        }
        // Who could not be asked may allow it.
        if self.denials.len() < self.failures.min(DENIALS) {
            return None;
        }
        self.denials.pop().map(|detail| Err(ReadError::Denied { key, detail }))
    }

    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn waits_for(&self, place: usize) -> bool {
        self.main.is_some_and(|(main, _)| main == place)
    }

    /// Asks the next one in the place of those before it.
    fn ask_next(&mut self) {
        self.main = None;
        if self.next >= self.candidates.len() {
            return;
        }
        let place = self.next;
        self.next += 1;
        self.main = Some((place, Instant::now()));
        // Once the object is known to be changed, others are asked only for what lies on their disks.
        let want = match place {
            _ if self.changed.is_some() => Want::OnDisk,
            0 if self.owner_first => Want::Owned,
            _ => Want::StandIn,
        };
        self.ask(place, want, false);
    }

    fn ask(&mut self, place: usize, want: Want, hedge: bool) {
        let (client, object, range) = (self.client, self.object, self.range);
        let address = self.candidates[place].address;
        let started = Instant::now();
        let asked = async move {
            let answer = client.transport.range(address, object, range, want).await;
            Event::Answer { place, hedge, took: started.elapsed(), answer }
        };
        self.under_way.push(asked.boxed());
    }

    /// Asks the next one too, if it has the bytes on its disk, and not more often than one read in twenty.
    fn hedge(&mut self) {
        self.hedged = true;
        if self.changed.is_none() && self.client.hedging.may() {
            self.twice = true;
            self.ask(self.next, Want::OnDisk, true);
        }
    }

    fn probe(&mut self) {
        let Some((place, _)) = self.main else { return };
        self.probed = Some(place);
        let (client, uid, address) = (self.client, self.object.dataset_uid, self.candidates[place].address);
        let alive = async move { Event::Alive { place, alive: client.alive(uid, address).await } };
        self.under_way.push(alive.boxed());
    }

    fn won(&self, place: usize, hedge: bool, took: std::time::Duration, source: Source, bytes: Bytes) -> Fetched {
        let Candidate { node, address } = &self.candidates[place];
        self.client.down.answered(*address);
        match self.main {
            Some((main, since)) if hedge => {
                // It would have taken longer still; and if it is dead, others should not wait for it.
                self.client.hedging.answered(self.len(), since.elapsed());
                let (client, uid, address) =
                    (Arc::clone(self.client), self.object.dataset_uid.to_owned(), self.candidates[main].address);
                tokio::spawn(async move {
                    if !client.alive(&uid, address).await {
                        client.down.silent(address);
                    }
                });
            }
            _ if source == Source::Disk => self.client.hedging.answered(self.len(), took),
            _ => {}
        }
        Fetched { bytes, source, node: node.clone(), hedged: self.twice }
    }

    /// An error that ends the read; else the next one is asked, if it was this one that was waited for.
    fn failed(&mut self, place: usize, failure: Failure) -> Option<ReadError> {
        let Candidate { node, address } = self.candidates[place].clone();
        self.failures += 1;
        match failure {
            Failure::NoAnswer(text) => {
                self.client.down.silent(address);
                self.last.push(format!("{node}: {text}"));
            }
            Failure::Broken(text) => self.last.push(format!("{node}: {text}")),
            Failure::Status(status, text) => {
                self.client.down.answered(address);
                self.last.push(format!("{node}: {text}"));
                match status {
                    StatusCode::RANGE_NOT_SATISFIABLE => {
                        let Range { start, end } = *self.range;
                        return Some(ReadError::Range { key: self.object.key.to_string(), start, end, detail: text });
                    }
                    StatusCode::CONFLICT => self.changed = self.changed.take().or(Some(text)),
                    StatusCode::BAD_GATEWAY => self.origin_failures += 1,
                    StatusCode::FAILED_DEPENDENCY => self.origin_denials.push(text),
                    // Whoever else is asked would ask the origin for the same bytes.
                    StatusCode::GATEWAY_TIMEOUT => self.later = self.changed.is_none() && self.waits_for(place),
                    StatusCode::FORBIDDEN => self.denials.push(text),
                    _ => {}
                }
            }
        }
        if self.changed.is_some() {
            self.old_copy_asks += 1;
        }
        if self.origin_failures >= ORIGIN_FAILURES
            || self.origin_denials.len() >= ORIGIN_DENIALS
            || self.denials.len() >= DENIALS
            || self.old_copy_asks > OLD_COPY_ASKS
        {
            self.next = self.candidates.len();
        }
        if self.waits_for(place) {
            self.ask_next();
        }
        None
    }
}
