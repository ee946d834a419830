//! gRPC stubs, generated from `proto/`; nothing else.
// Generated code: lints of the workspace do not apply.

/// The Container Storage Interface.
pub mod csi {
    /// v1
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// The kubelet's plugin registration.
pub mod pluginregistration {
    /// v1
    pub mod v1 {
        tonic::include_proto!("pluginregistration");
    }
}

/// What daemons ask of the operator's CA.
pub mod authority {
    /// v1
    pub mod v1 {
        tonic::include_proto!("larder.authority.v1");
    }
}

/// What Larder's daemons say to each other.
pub mod control {
    /// v1
    pub mod v1 {
        tonic::include_proto!("larder.control.v1");
    }
}
