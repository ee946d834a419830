//! Two operators and an API server that holds one Secret and one ConfigMap.

use super::*;
use http::{Request, Response};
use kube::client::Body;
use larder_trust::Held;
use parking_lot::Mutex;
use serde_json::{Value, json};

type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

fn client(objects: &Objects) -> Client {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let objects = Arc::clone(objects);
    tokio::spawn(async move {
        while let Some((request, answer)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let name = parts.uri.path().to_owned();
            let (status, text) = match parts.method.as_str() {
                "GET" => match objects.lock().get(&name) {
                    Some(object) => (200, object.clone()),
                    None => (
                        404,
                        json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "message": "none", "code": 404 }),
                    ),
                },
                "PATCH" => {
                    let mut object: Value = serde_json::from_slice(&body).unwrap();
                    object["metadata"]["resourceVersion"] = json!("7");
                    objects.lock().insert(name, object.clone());
                    (200, object)
                }
                other => panic!("{other} {name}"),
            };
            let body = Body::from(serde_json::to_vec(&text).unwrap());
            answer.send_response(Response::builder().status(status).body(body).unwrap());
        }
    });
    Client::new(service, "larder-system")
}

struct Operator {
    keep: Keep,
    held: Held,
    kept: watch::Receiver<Option<Arc<Kept>>>,
}

fn operator(objects: &Objects) -> Operator {
    let (certified, held) = Held::new();
    let (sender, kept) = watch::channel(None);
    Operator { keep: Keep::new(client(objects), "larder-system", Lifetimes::default(), certified, sender), held, kept }
}

impl Operator {
    fn signer(&self) -> String {
        self.kept.borrow().as_ref().unwrap().signer().to_pem().0
    }
}

#[tokio::test]
async fn the_leader_makes_the_ca_once_and_the_others_have_the_same() {
    let objects = Objects::default();
    let (leader, other) = (operator(&objects), operator(&objects));
    assert!(matches!(other.keep.round(false).await, Err(KeepError::NotYet)));
    assert!(objects.lock().is_empty() && other.held.now().is_err());

    leader.keep.round(true).await.unwrap();
    let made = objects.lock().clone();
    assert_eq!(made.len(), 2, "Secret and ConfigMap");
    assert_eq!(*leader.held.now().unwrap().identity(), Identity::Operator);
    other.keep.round(false).await.unwrap();
    assert_eq!(other.signer(), leader.signer());

    let (credentials, next) = (leader.held.now().unwrap(), operator(&objects));
    leader.keep.round(true).await.unwrap();
    next.keep.round(true).await.unwrap();
    assert_eq!(*objects.lock(), made, "nothing is written again");
    assert!(Arc::ptr_eq(&credentials, &leader.held.now().unwrap()));
    assert_eq!(next.signer(), leader.signer());
}

#[tokio::test]
async fn a_lost_secret_is_made_anew_and_old_certificates_stay_trusted() {
    let objects = Objects::default();
    let leader = operator(&objects);
    leader.keep.round(true).await.unwrap();
    let (old, bundle) = (leader.signer(), leader.held.now().unwrap().bundle().to_pem());
    objects.lock().retain(|name, _| name.contains("configmaps"));
    leader.keep.round(true).await.unwrap();
    assert_ne!(leader.signer(), old);
    let trusted = leader.held.now().unwrap().bundle().to_pem();
    assert!(trusted.contains(&bundle) && trusted.contains(&leader.signer()));
}

#[tokio::test]
async fn a_secret_that_is_not_readable_is_named_and_not_replaced() {
    let objects = Objects::default();
    let leader = operator(&objects);
    leader.keep.round(true).await.unwrap();
    for (name, object) in objects.lock().iter_mut().filter(|(name, _)| name.contains("secrets")) {
        let key = object["data"].as_object().unwrap().keys().find(|k| k.ends_with(".key")).unwrap().clone();
        object["data"][&key] = json!("bm9uZQ==");
        assert!(name.ends_with("larder-authority"));
    }
    let damaged = objects.lock().clone();
    let error = leader.keep.round(true).await.unwrap_err().to_string();
    assert!(error.contains("Secret larder-authority") && error.contains(".key"), "{error}");
    assert_eq!(*objects.lock(), damaged);
}
