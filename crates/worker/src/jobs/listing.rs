//! Lists the origin and writes the catalog.

use super::{Pause, goal_changed};
use crate::{
    folder,
    orders::{Orders, Source},
    report::{folder_problem, origin_problem, problem, reasons},
    worker::Worker,
};
use futures::StreamExt as _;
use larder_core::catalog::{Builder, Catalog, ReadAt, Skipped};
use larder_origin::Item;
use larder_proto::control::v1::{self as pb, Phase, Problem};
use std::{
    io,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Skipped keys that are told to people.
const EXAMPLES: usize = 10;
/// Longest text of one of them.
const EXAMPLE: usize = 300;
/// Objects between two reports.
const STEP: u64 = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Goal {
    id: String,
    source: Source,
    retry: u64,
}

fn goal(orders: &Orders) -> Option<Goal> {
    let Orders { listing_id, source, retry, .. } = orders;
    (!listing_id.is_empty()).then(|| Goal { id: listing_id.clone(), source: source.clone(), retry: *retry })
}

/// Takes the listing of the orders, if it is not the one taken.
pub(crate) async fn run(worker: Arc<Worker>) {
    let mut orders = worker.orders.subscribe();
    loop {
        let wanted = orders.borrow_and_update().as_deref().and_then(goal);
        tokio::select! {
            biased;
            () = goal_changed(&mut orders, goal, &wanted) => {}
            () = pursue(&worker, wanted.as_ref()) => {}
        }
    }
}

/// Never ends.
async fn pursue(worker: &Arc<Worker>, goal: Option<&Goal>) {
    let taken = |goal: &Goal| {
        let state = worker.state.lock();
        state.listing.as_ref().is_some_and(|l| l.id == goal.id && worker.catalogs.get(&l.snapshot).is_some())
    };
    let Some(goal) = goal.filter(|g| !taken(g)) else {
        worker.report.set_listing(None);
        return std::future::pending().await;
    };
    let running = pb::Listing { id: goal.id.clone(), phase: Phase::Running.into(), ..pb::Listing::default() };
    let mut pause = Pause::new();
    let mut last: Option<Problem> = None;
    loop {
        // A failure stays told while it is tried again, so that nobody sees it come and go.
        if last.is_none() {
            worker.report.set_listing(Some(running.clone()));
        }
        match attempt(worker, goal, &running, last.is_none()).await {
            Ok(()) => {
                worker.report.set_listing(None);
                return std::future::pending().await;
            }
            Err(p) => {
                if last.as_ref() != Some(&p) {
                    tracing::warn!(
                        listing = goal.id,
                        source = goal.source.uri,
                        reason = p.reason,
                        message = p.message,
                        "listing failed"
                    );
                }
                let listing = pb::Listing { phase: Phase::Failed.into(), problem: Some(p.clone()), ..running.clone() };
                worker.report.set_listing(Some(listing));
                last = Some(p);
            }
        }
        pause.wait().await;
    }
}

async fn attempt(worker: &Arc<Worker>, goal: &Goal, running: &pb::Listing, tell: bool) -> Result<(), Problem> {
    let held_up = |p| {
        let problem = Some(p);
        worker.report.set_listing(Some(pb::Listing { phase: Phase::Failed.into(), problem, ..running.clone() }));
    };
    let connection = worker.connections.exactly_or(&goal.source, &worker.report, held_up).await;
    let origin = connection.origin().map_err(|e| origin_problem(&e))?;
    tracing::info!(listing = goal.id, source = origin.uri(), "listing begins");
    let mut builder = Builder::new(origin.uri());
    let (mut files, mut bytes) = (0u64, 0u64);
    let mut items = origin.list();
    while let Some(item) = items.next().await {
        match item.map_err(|e| origin_problem(&e))? {
            Item::File(file) => {
                files += 1;
                bytes = bytes.saturating_add(file.size);
                builder.push(file);
            }
            Item::Skipped { key, reason } => builder.skip(key, reason),
        }
        if tell && files.is_multiple_of(STEP) {
            worker.report.set_listing(Some(pb::Listing { files, bytes, ..running.clone() }));
        }
    }
    drop(items);
    let (uri, id, task) = (origin.uri().to_owned(), goal.id.clone(), Arc::clone(worker));
    let taken = tokio::task::spawn_blocking(move || write(&task, builder, &uri, id));
    let taken = taken.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
    tracing::info!(
        listing = taken.id,
        snapshot = taken.snapshot,
        files = taken.files,
        bytes = taken.bytes,
        skipped = taken.skipped,
        "listing taken"
    );
    worker.state.lock().listing = Some(taken);
    worker.save_state().await.map_err(|e| folder_problem(&e))
}

/// Blocks.
fn write(worker: &Worker, builder: Builder, uri: &str, id: String) -> Result<folder::Listing, Problem> {
    let (catalog, skipped) = builder.finish();
    let counted = Catalog::open(InMemory(&catalog)).map(|c| (c.files(), c.bytes()));
    let (files, bytes) =
        counted.map_err(|e| problem(reasons::SNAPSHOT_UNAVAILABLE, format!("make the catalog of {uri}: {e}; report this")))?;
    if files == 0 {
        let left_out = if skipped.is_empty() {
            String::new()
        } else {
            format!(" ({} keys left out: {})", skipped.len(), example(&skipped[0]))
        };
        let text = format!(
            "list {uri}: no object there that source.include and source.exclude let through{left_out}; correct the source"
        );
        return Err(problem(reasons::EMPTY_SOURCE, text));
    }
    let snapshot = worker.catalogs.write(&catalog).map_err(|e| folder_problem(&e))?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()).cast_signed();
    Ok(folder::Listing {
        id,
        snapshot,
        files,
        bytes,
        skipped: skipped.len() as u64,
        skipped_examples: skipped.iter().take(EXAMPLES).map(example).collect(),
        time,
    })
}

fn example(skipped: &Skipped) -> String {
    let text: String = format!("{:?} {}", skipped.key, skipped.reason);
    if text.len() <= EXAMPLE {
        text
    } else {
        format!("{}… {}", text.chars().take(EXAMPLE / 4).collect::<String>(), skipped.reason)
    }
}

/// A catalog that is not written yet, looked at without a copy.
struct InMemory<'a>(&'a [u8]);

impl ReadAt for InMemory<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let part = from.and_then(|rest| rest.get(..buf.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}
