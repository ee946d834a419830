//! What a caller may do.

use crate::{Caller, Identity, MountToken, NoCertificate, Peer, TokenError, now};

/// Why a caller is refused. Names who it is, so that it can be found in the log of the one that refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It had a certificate.
    #[error("{0}: its certificate has expired")]
    Expired(Identity),
    /// A daemon that has nothing to do here.
    #[error("{0} may not ask this of {1}")]
    Stranger(Identity, Identity),
    /// A mounter without a token.
    #[error("{0} shows no mount token")]
    NoToken(Identity),
    /// A mounter with a token that is not good.
    #[error("{0}: {1}")]
    Token(Identity, TokenError),
    /// It was known when it connected, but we are nobody now.
    #[error(transparent)]
    NoCertificate(#[from] NoCertificate),
}

/// May it read from the data port of this process, a worker? Workers of the same dataset may, and mounters that show a token for
/// this dataset and their own node.
///
/// # Errors
/// When it may not.
pub fn to_data(caller: &Caller, token: Option<&str>) -> Result<(), Denied> {
    let Caller::Known(peer) = caller else { return Ok(()) };
    let (asks, now) = (valid(peer)?, now());
    let us = peer.held().now()?;
    let Identity::Worker { dataset: ours, .. } = us.identity() else {
        return Err(Denied::Stranger(asks.clone(), us.identity().clone()));
    };
    match asks {
        Identity::Worker { dataset, .. } if dataset == ours => Ok(()),
        Identity::Mounter { node } => {
            let token = token.ok_or_else(|| Denied::NoToken(asks.clone()))?;
            // Verifying a signature costs more than many a read: once for each connection.
            if peer.has_shown(token, now) {
                return Ok(());
            }
            let until = MountToken::verify(token, us.bundle(), ours, node, now).map_err(|e| Denied::Token(asks.clone(), e))?;
            peer.shows(token, until);
            Ok(())
        }
        stranger => Err(Denied::Stranger(stranger.clone(), us.identity().clone())),
    }
}

/// May it give orders? Only the operator may.
///
/// # Errors
/// When it may not.
pub fn to_control(caller: &Caller) -> Result<(), Denied> {
    let Caller::Known(peer) = caller else { return Ok(()) };
    match valid(peer)? {
        Identity::Operator => Ok(()),
        stranger => Err(Denied::Stranger(stranger.clone(), peer.held().now()?.identity().clone())),
    }
}

/// The check of [`to_control`] in front of a gRPC service.
///
/// # Errors
/// `PermissionDenied`, or `Internal` for a connection that did not come from [`crate::Incoming`].
pub fn control_requests(request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    let caller = request.extensions().get::<Caller>().ok_or_else(|| tonic::Status::internal("the caller is not known"))?;
    match to_control(caller) {
        Ok(()) => Ok(request),
        Err(denied) => {
            tracing::warn!(%denied, "call refused");
            Err(tonic::Status::permission_denied(denied.to_string()))
        }
    }
}

fn valid(peer: &Peer) -> Result<&Identity, Denied> {
    if peer.is_valid_at(now()) { Ok(peer.identity()) } else { Err(Denied::Expired(peer.identity().clone())) }
}
