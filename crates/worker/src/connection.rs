//! The connection to the origin: settings from the orders, credentials and CA from mounted folders, or from whoever runs this
//! worker in its own process.
//!
//! The kubelet refreshes mounted folders with a delay of up to about a minute. The operator writes a key `generation` into
//! both, so that it can be seen whether what is mounted is what the orders mean. Until then what is mounted is good enough
//! for reads; listings and preloads wait.

use crate::{
    orders::{Orders, Source},
    report::{Report, Topic, origin_problem, problem, reasons},
    worker::Worker,
};
use larder_origin::{Access, Credentials, Error, Folders, Origin, Pace, Patience, Reason, Received};
use larder_proto::control::v1::Problem;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Where what the origin is reached with comes from.
#[derive(Clone, Debug)]
pub(crate) enum Keys {
    /// From folders that the kubelet keeps up to date.
    Mounted(Mounted),
    /// As they are, for the life of the process.
    Given(Access),
}

/// Where Secret, CA and folders of the host are mounted.
#[derive(Clone, Debug)]
pub(crate) struct Mounted {
    pub credentials: PathBuf,
    pub ca: PathBuf,
    /// Those that the administrator allows as a source.
    pub folders: Folders,
}

/// The key in Secret and ConfigMap that identifies their content.
const GENERATION: &str = "generation";
/// The key of the CA in its ConfigMap.
const CA: &str = "ca.crt";
/// Pause between looks at the mounted folders.
const LOOK: Duration = Duration::from_millis(500);
/// After this the wait is a problem: the kubelet refreshes within a minute, a busy one within two.
const PATIENCE: Duration = Duration::from_secs(120);
/// Origins remembered: one for each prefix that snapshots in use were taken from.
const ORIGINS: usize = 32;

/// Everything that requests to the origin are made with.
#[derive(Debug)]
pub(crate) struct Connection {
    pub source: Source,
    /// Are the mounted generations those of the orders?
    exact: bool,
    access: Access,
    received: Arc<Received>,
    origins: Mutex<HashMap<String, Arc<dyn Origin>>>,
}

impl Connection {
    fn new(source: Source, exact: bool, access: Access, received: &Arc<Received>) -> Self {
        Self { source, exact, access, received: Arc::clone(received), origins: Mutex::default() }
    }

    /// The origin of the orders, with their globs.
    pub fn origin(&self) -> Result<Arc<dyn Origin>, Error> {
        self.connect(&self.source.uri)
    }

    /// The origin that a snapshot was taken from; its prefix may be another than that of the orders.
    pub fn origin_of(&self, uri: &str) -> Result<Arc<dyn Origin>, Error> {
        if let Some(origin) = self.origins.lock().get(uri) {
            return Ok(Arc::clone(origin));
        }
        let origin = self.connect(uri)?;
        let mut origins = self.origins.lock();
        if origins.len() >= ORIGINS {
            origins.clear();
        }
        origins.insert(uri.to_owned(), Arc::clone(&origin));
        Ok(origin)
    }

    fn connect(&self, uri: &str) -> Result<Arc<dyn Origin>, Error> {
        let source = larder_origin::Source { uri: uri.to_owned(), ..self.source.to_origin() };
        larder_origin::connect(&source, &self.access, Arc::clone(&self.received))
    }
}

/// The newest connection.
#[derive(Debug)]
pub(crate) struct Connections {
    newest: watch::Sender<Option<Arc<Connection>>>,
}

impl Connections {
    pub fn new() -> Self {
        Self { newest: watch::Sender::new(None) }
    }

    /// Whatever there is now.
    pub fn now(&self) -> Result<Arc<Connection>, Error> {
        self.newest.borrow().clone().ok_or_else(|| {
            let text = "no connection to the origin: this worker has no orders yet, or its credentials are not mounted yet";
            Error::new(Reason::CredentialsMissing, text)
        })
    }

    /// Are requests made with other keys than those of the orders, which are on their way to this node?
    pub fn are_changing(&self, orders: Option<&Orders>) -> bool {
        let newest = self.newest.borrow();
        !newest.as_ref().is_some_and(|c| c.exact && orders.is_some_and(|o| o.source == c.source))
    }

    /// Waits for the one that is made with exactly these settings; `held_up` hears now and then why it is not there yet.
    pub async fn exactly_or(&self, source: &Source, report: &Report, held_up: impl Fn(Problem)) -> Arc<Connection> {
        loop {
            tokio::select! {
                biased;
                connection = self.exactly(source) => return connection,
                () = tokio::time::sleep(LOOK) => report.get(Topic::Connect).into_iter().for_each(&held_up),
            }
        }
    }

    async fn exactly(&self, source: &Source) -> Arc<Connection> {
        let mut newest = self.newest.subscribe();
        loop {
            let found = newest.wait_for(|c| c.as_ref().is_some_and(|c| c.exact && c.source == *source)).await;
            if let Ok(found) = found
                && let Some(connection) = &*found
            {
                return Arc::clone(connection);
            }
        }
    }
}

/// Keeps the newest connection what the orders say.
pub(crate) async fn run(worker: Arc<Worker>) {
    let mut orders = worker.orders.subscribe();
    loop {
        let source = orders.borrow_and_update().as_ref().map(|o| o.source.clone());
        let changed = async {
            let other = |o: &Option<Arc<Orders>>| o.as_ref().map(|o| &o.source) != source.as_ref();
            orders.wait_for(other).await.is_ok()
        };
        tokio::select! {
            biased;
            go_on = changed => if !go_on { return },
            () = connect(&worker, source.as_ref()) => {}
        }
    }
}

/// Never ends: what is wanted is there, or it is looked for again and again.
async fn connect(worker: &Worker, source: Option<&Source>) {
    let Some(source) = source else { return std::future::pending().await };
    let folders = match &worker.keys {
        Keys::Mounted(folders) => folders,
        Keys::Given(access) => {
            let access = Access { pace: worker.pace.clone(), ..access.clone() };
            let connection = Connection::new(source.clone(), true, access, &worker.received);
            worker.connections.newest.send_replace(Some(Arc::new(connection)));
            return std::future::pending().await;
        }
    };
    let started = Instant::now();
    loop {
        let mounted = look(folders, source, &worker.pace, &worker.received).await;
        let exact = matches!(&mounted, Ok(c) if c.exact);
        report(&worker.report, &mounted, folders, source, started.elapsed());
        if let Ok(connection) = mounted {
            // A worker that starts without an operator works with what is mounted, whatever its stored orders say.
            let first = || worker.connections.newest.borrow().as_ref().is_none_or(|c| c.source != *source && !c.exact);
            if exact || connection.usable() && first() {
                worker.connections.newest.send_replace(Some(Arc::new(connection)));
            }
        }
        if exact {
            return std::future::pending().await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Connection {
    fn usable(&self) -> bool {
        self.source.anonymous || self.source.to_origin().is_folder() || self.access.credentials.is_some()
    }
}

fn report(report: &Report, mounted: &Result<Connection, Problem>, folders: &Mounted, source: &Source, waited: Duration) {
    match mounted {
        Ok(c) if c.exact => match c.origin() {
            Ok(_) => report.set(Topic::Connect, None),
            Err(e) => report.set(Topic::Connect, Some(origin_problem(&e))),
        },
        Ok(_) if waited < PATIENCE => {}
        Ok(c) => {
            let is_ca = !source.ca_generation.is_empty()
                && read(&folders.ca, GENERATION).ok().flatten() != Some(source.ca_generation.clone().into());
            let (reason, what, folder) = if is_ca {
                (reasons::CA_NOT_MOUNTED, "the CA", &folders.ca)
            } else {
                (reasons::CREDENTIALS_NOT_MOUNTED, "the credentials", &folders.credentials)
            };
            let text = format!(
                "{what} of {} did not appear in {} within {PATIENCE:?}; see whether the kubelet of this node can mount them (events of the worker pod)",
                c.source.uri,
                folder.display()
            );
            report.set(Topic::Connect, Some(problem(reason, text)));
        }
        Err(p) => report.set(Topic::Connect, Some(p.clone())),
    }
}

async fn look(folders: &Mounted, source: &Source, pace: &Pace, received: &Arc<Received>) -> Result<Connection, Problem> {
    let (folders, source, pace, received) = (folders.clone(), source.clone(), pace.clone(), Arc::clone(received));
    let looked = tokio::task::spawn_blocking(move || {
        let disk = |e: io::Error| problem(reasons::CREDENTIALS_INVALID, format!("read mounted credentials or CA: {e}"));
        let generation =
            |folder: &Path| Ok(read(folder, GENERATION).map_err(disk)?.map(|g| String::from_utf8_lossy(&g).trim().to_owned()));
        let before = (generation(&folders.credentials)?, generation(&folders.ca)?);
        let credentials = if source.anonymous {
            None
        } else {
            Credentials::load(&folders.credentials).map_err(|e| problem(reasons::CREDENTIALS_INVALID, e.to_string()))?
        };
        let ca = read(&folders.ca, CA).map_err(disk)?;
        // The kubelet may have changed them in between.
        let same = before == (generation(&folders.credentials)?, generation(&folders.ca)?);
        let is = |wanted: &str, mounted: Option<&str>| wanted.is_empty() || mounted == Some(wanted);
        let exact =
            same && is(&source.credentials_generation, before.0.as_deref()) && is(&source.ca_generation, before.1.as_deref());
        // A CA that the orders do not know of is being removed.
        let ca = ca.filter(|_| !source.ca_generation.is_empty());
        let access = Access { credentials, ca, folders: folders.folders, pace, patience: Patience::default() };
        Ok(Connection::new(source, exact, access, &received))
    });
    looked.await.unwrap_or_else(|e| Err(problem(reasons::CREDENTIALS_INVALID, format!("read mounted credentials: {e}"))))
}

fn read(folder: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(folder.join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}
