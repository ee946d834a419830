//! Against an API server that holds one Lease and refuses writes that are based on an older one.

use super::*;
use http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;

/// The Lease as the API server has it, and whether the server can be reached.
#[derive(Clone, Default)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    away: Arc<Mutex<bool>>,
}

impl Server {
    fn candidate(&self, me: &str) -> Candidate {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let server = self.clone();
        tokio::spawn(async move {
            while let Some((request, answer)) = handle.next_request().await {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let (status, text) = server.answer(parts.method.as_str(), serde_json::from_slice(&body).unwrap_or(Value::Null));
                let body = Body::from(serde_json::to_vec(&text).unwrap());
                answer.send_response(Response::builder().status(status).body(body).unwrap());
            }
        });
        Candidate::new(Client::new(service, "larder-system"), "larder-system", me.to_owned())
    }

    fn answer(&self, method: &str, mut body: Value) -> (u16, Value) {
        let refused = |code: u16, reason: &str| {
            (code, json!({ "kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code }))
        };
        if *self.away.lock() {
            return refused(503, "ServiceUnavailable");
        }
        let mut lease = self.lease.lock();
        let version = lease.as_ref().map(|l| l["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
        match (method, version) {
            ("GET", None) => refused(404, "NotFound"),
            ("GET", Some(_)) => (200, lease.clone().unwrap()),
            ("POST", Some(_)) => refused(409, "AlreadyExists"),
            ("PUT", None) => refused(404, "NotFound"),
            ("PUT", Some(version)) if body["metadata"]["resourceVersion"] != json!(version) => refused(409, "Conflict"),
            (_, version) => {
                let next = version.map_or(1, |v| v.parse::<u64>().unwrap() + 1);
                body["metadata"]["resourceVersion"] = json!(next.to_string());
                *lease = Some(body.clone());
                (200, body)
            }
        }
    }

    fn holder(&self) -> String {
        self.lease.lock().as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }
}

fn unheard() {}

#[tokio::test(start_paused = true)]
async fn the_first_one_leads_and_the_second_stands_by_until_the_first_steps_down() {
    let server = Server::default();
    let mut first = server.candidate("a").lead(|| panic!("nobody else is there")).await;
    let stood_by = Arc::new(Mutex::new(false));
    let heard = Arc::clone(&stood_by);
    let mut second = Box::pin(server.candidate("b").lead(move || *heard.lock() = true));
    // Much longer than the Lease lasts: renewals hold it. Not in the middle of one.
    tokio::select! {
        lost = first.lost() => panic!("{lost}"),
        _ = &mut second => panic!("two lead"),
        () = tokio::time::sleep(DURATION * 10 + RETRY / 2) => {}
    }
    assert!(*stood_by.lock());
    assert_eq!(server.holder(), "a");
    first.step_down().await;
    let started = Instant::now();
    second.await;
    assert!(started.elapsed() <= RETRY, "{:?}", started.elapsed());
    assert_eq!(server.holder(), "b");
    assert_eq!(server.lease.lock().as_ref().unwrap()["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_died_is_followed_after_its_lease_and_not_before() {
    let server = Server::default();
    drop(server.candidate("a").lead(unheard).await);
    let started = Instant::now();
    server.candidate("b").lead(unheard).await;
    assert!((DURATION..=DURATION + RETRY).contains(&started.elapsed()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_container_that_starts_again_in_its_pod_leads_at_once() {
    let server = Server::default();
    drop(server.candidate("a").lead(unheard).await);
    let started = Instant::now();
    server.candidate("a").lead(|| panic!("it is its own")).await;
    assert!(started.elapsed() < RETRY);
}

#[tokio::test(start_paused = true)]
async fn a_leader_stops_before_anyone_else_may_begin() {
    let server = Server::default();
    let mut leader = server.candidate("a").lead(unheard).await;
    let started = Instant::now();
    *server.away.lock() = true;
    let lost = leader.lost().await;
    assert!(lost.contains("could not be renewed"), "{lost}");
    assert!(started.elapsed() <= RENEW_WITHIN + RETRY && started.elapsed() < DURATION, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_short_absence_of_the_api_server_loses_nothing() {
    let server = Server::default();
    let mut leader = server.candidate("a").lead(unheard).await;
    for _ in 0..5 {
        *server.away.lock() = true;
        assert!(tokio::time::timeout(RENEW_WITHIN / 2 + RETRY / 4, leader.lost()).await.is_err());
        *server.away.lock() = false;
        assert!(tokio::time::timeout(RETRY + RETRY / 2, leader.lost()).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_someone_else_took_is_lost_at_once() {
    let server = Server::default();
    let mut leader = server.candidate("a").lead(unheard).await;
    {
        let mut lease = server.lease.lock();
        let lease = lease.as_mut().unwrap();
        lease["metadata"]["resourceVersion"] = json!("99");
        lease["spec"]["holderIdentity"] = json!("b");
    }
    let lost = leader.lost().await;
    assert!(lost.contains("taken by another one"), "{lost}");
    assert_eq!(server.holder(), "b");
}
