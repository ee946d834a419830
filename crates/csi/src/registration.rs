//! Registration with the kubelet, which watches the folder of this socket.

use larder_core::names;
use larder_proto::pluginregistration::v1::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server,
};
use larder_telemetry::Health;
use std::path::{Path, PathBuf};
use tonic::{Request, Response, Status};

/// Of the kubelet's plugin watcher.
const CSI_PLUGIN: &str = "CSIPlugin";
/// The kubelet wants a version of the CSI specification with major number 1.
const CSI_VERSION: &str = "1.12.0";

/// Tells the kubelet where the CSI socket is.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    csi_socket: PathBuf,
    health: Health,
}

impl Registration {
    pub(crate) fn new(csi_socket: &Path, health: Health) -> Self {
        Self { csi_socket: csi_socket.to_owned(), health }
    }
}

#[tonic::async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: CSI_PLUGIN.to_owned(),
            name: names::DRIVER.to_owned(),
            endpoint: self.csi_socket.to_string_lossy().into_owned(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.health.set_ready(status.plugin_registered);
        if status.plugin_registered {
            tracing::info!("registered with the kubelet");
        } else {
            // The kubelet tries again by itself.
            tracing::error!(error = status.error, "the kubelet refused the registration");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
