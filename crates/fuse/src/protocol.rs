//! What the daemons of one node say to each other over [`crate::fdpass`]. Both ends of a socket take the types from here.

pub mod backing;
pub mod keeper;
pub mod mounter;
pub mod worker;

#[cfg(test)]
mod tests {
    use super::{backing, keeper, mounter, worker};
    use serde::{Serialize, de::DeserializeOwned};
    use serde_json::{Value, json};

    /// Puts a field that nobody knows into each object, but for those that stand for the kind of a message.
    fn later(value: &mut Value, is_kind: bool) {
        match value {
            Value::Object(fields) => {
                fields.values_mut().for_each(|value| later(value, false));
                if !is_kind {
                    fields.insert("ofALaterRelease".into(), json!({ "a": [1] }));
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| later(value, false)),
            _ => {}
        }
    }

    fn is_understood<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(written: &str) {
        let mut value: Value = serde_json::from_str(written).unwrap();
        let known: T = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_string(&known).unwrap(), written, "as this release writes it");
        later(&mut value, true);
        assert_eq!(serde_json::from_value::<T>(value).unwrap(), known);
    }

    /// One of a later release must understand these.
    #[test]
    fn messages_of_this_release_are_written_as_ever_and_may_have_fields_that_are_not_known() {
        let mount = r#"{"identity":"i","datasetUid":"u","snapshot":"s","uid":1,"gid":2,"fileMode":292,"dirMode":365,"mode":"Passthrough"}"#;
        for kind in ["prepare", "serve"] {
            is_understood::<mounter::Request>(&format!(r#"{{"{kind}":{mount}}}"#));
        }
        is_understood::<mounter::Request>(r#"{"permit":{"datasetUid":"u","token":"t"}}"#);
        is_understood::<mounter::Request>(r#"{"list":{}}"#);
        is_understood::<mounter::Request>(r#"{"forget":{"identity":"i"}}"#);
        for kind in ["ready", "serving", "permitted", "forgotten"] {
            is_understood::<mounter::Reply>(&format!(r#"{{"{kind}":{{}}}}"#));
        }
        is_understood::<mounter::Reply>(
            r#"{"mounts":[{"identity":"i","mode":"NoOpen","reads":{"requestedBytes":1,"localBytes":2,"peerBytes":3,"originBytes":4,"failed":5}}]}"#,
        );
        is_understood::<mounter::Reply>(r#"{"error":{"retry":true,"message":"m"}}"#);
        is_understood::<worker::Request>(r#"{"open":{"snapshot":"d","inode":7}}"#);
        is_understood::<worker::Request>(r#"{"catalog":{"digest":"d"}}"#);
        is_understood::<worker::Request>(r#"{"reads":{"snapshot":"d","files":[[7,4096]]}}"#);
        is_understood::<worker::Reply>(r#"{"file":{}}"#);
        is_understood::<worker::Reply>(r#"{"absent":{"owner":true}}"#);
        is_understood::<worker::Reply>(r#"{"arrived":{"inodes":[7]}}"#);
        is_understood::<keeper::Request>(r#"{"put":{"key":"k","stamp":7,"value":"v"}}"#);
        is_understood::<keeper::Request>(r#"{"remove":{"key":"k","stamp":7}}"#);
        is_understood::<keeper::Reply>(r#"{"item":{"stamp":7,"value":"v"}}"#);
        is_understood::<keeper::Reply>(r#"{"keys":{"life":1,"keys":[["k",7]]}}"#);
        is_understood::<backing::Request>(r#"{"attach":{}}"#);
        is_understood::<backing::Request>(r#"{"unregister":{"id":3}}"#);
        is_understood::<backing::Reply>(r#"{"registered":{"id":3}}"#);
        is_understood::<backing::Reply>(r#"{"error":{"errno":40}}"#);
    }
}
