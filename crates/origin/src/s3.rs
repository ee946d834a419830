//! S3 and what speaks like it, through object_store.

mod classify;
mod page;
mod wire;

use crate::{Credentials, Error, Item, Origin, Reason, Received, Source, source::Resolved};
use bytes::{Bytes, BytesMut};
use classify::Action;
use futures::{StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use larder_core::catalog::Listed;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, GetOptions, GetRange, ObjectStore as _, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    list::{PaginatedListOptions, PaginatedListStore as _},
    path::Path,
};
use page::Page;
use std::{ops::Range, sync::Arc, time::Duration};
use wire::{Connector, Trace};

/// An unanswered SYN is sent again after 1 s and 3 s: 5 s lets two of them be lost.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence inside an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Together with the waits above, a request fails within about a minute; who wants the bytes then decides anew.
const RETRIES: usize = 4;
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// More keys than Amazon puts in a page; a server that never ends would fill the memory otherwise.
const PAGE_ENDLESS: usize = 1_000_000;

/// Can the object be asked for by this key? object_store has no path with empty parts, `.`, `..` or control characters.
pub(crate) fn fetchable(key: &str) -> bool {
    Path::parse(key).is_ok_and(|p| p.as_ref() == key)
}

/// A prefix of a bucket.
#[derive(Debug)]
pub struct S3 {
    store: AmazonS3,
    source: Resolved,
}

impl S3 {
    /// `ca`: PEM of the only certificates to trust; `None`: the system's. Bytes received are added to `received`.
    ///
    /// # Errors
    /// A source, credentials or CA that cannot be used; nothing is asked from the origin yet.
    pub fn new(
        source: &Source,
        credentials: Option<Credentials>,
        ca: Option<&[u8]>,
        received: Arc<Received>,
    ) -> Result<Self, Error> {
        let anonymous = source.anonymous;
        let source = source.resolve()?;
        let plain = source.endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
        let mut options = ClientOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_read_timeout(READ_TIMEOUT)
            .with_timeout_disabled()
            .with_allow_http(plain)
            // What is given is trusted instead of the system's roots; without TLS there is nothing to trust.
            .with_no_system_certificates(ca.is_some() || plain);
        if let Some(pem) = ca {
            let certificates = Certificate::from_pem_bundle(pem).map_err(|e| {
                Error::new(
                    Reason::InvalidSource,
                    format!("source.ca: no certificates in PEM ({e}); correct ca.crt in the ConfigMap"),
                )
            })?;
            for certificate in certificates {
                options = options.with_root_certificate(certificate);
            }
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&source.bucket)
            .with_region(&source.region)
            .with_virtual_hosted_style_request(source.virtual_hosted)
            .with_allow_http(plain)
            .with_client_options(options)
            .with_retry(RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: Duration::from_millis(100),
                    max_backoff: Duration::from_secs(5),
                    base: 2.,
                },
                max_retries: RETRIES,
                retry_timeout: RETRY_TIMEOUT,
            })
            .with_http_connector(Connector::new(received));
        if let Some(endpoint) = &source.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        builder = match credentials {
            _ if anonymous => builder.with_skip_signature(true),
            Some(c) => {
                let builder = builder.with_access_key_id(c.access_key_id).with_secret_access_key(c.secret_access_key);
                match c.session_token {
                    Some(token) => builder.with_token(token),
                    None => builder,
                }
            }
            None => {
                return Err(Error::new(
                    Reason::CredentialsMissing,
                    format!(
                        "{}: no credentials; set source.credentials.secretRef, or anonymous for a public bucket",
                        source.uri
                    ),
                ));
            }
        };
        let store = builder
            .build()
            .map_err(|e| Error::new(Reason::InvalidSource, format!("{}: {e}; correct the source", source.uri)))?;
        Ok(Self { store, source })
    }

    async fn page(&self, token: Option<String>) -> Result<(Page, Option<String>), Error> {
        let trace = Trace::default();
        let mut extensions = http::Extensions::new();
        extensions.insert(trace.clone());
        let options = PaginatedListOptions { page_token: token, extensions, ..PaginatedListOptions::default() };
        let prefix = Some(self.source.prefix.as_str()).filter(|p| !p.is_empty());
        let failed = |e: &object_store::Error| classify::error(&self.source, Action::List, &trace.take(), e);
        let mut answer = self.store.list_paginated(prefix, options).await.map_err(|e| failed(&e))?;
        let page = answer.result.extensions.remove::<Page>().unwrap_or_default();
        Ok((page, answer.page_token))
    }

    /// Key → item; `None`: filtered out.
    fn item(&self, object: page::Object) -> Option<Item> {
        // A server that gives keys from beside the prefix would put strangers into the dataset.
        let path = object.key.strip_prefix(&self.source.prefix)?;
        if path.is_empty() || !self.source.globs.admit(path.trim_end_matches('/')) {
            return None;
        }
        let skipped = |reason| Some(Item::Skipped { key: path.to_owned(), reason });
        let folder_marker = path.ends_with('/') && object.size == 0;
        match object.e_tag {
            None => skipped("has no ETag, so that a change could not be noticed"),
            Some(_) if !folder_marker && !fetchable(&object.key) => {
                // The catalog's own reason is the better one for what it refuses as well.
                if path.bytes().any(|b| b.is_ascii_control()) {
                    skipped("has a control character")
                } else {
                    skipped("has an empty part (//), a part . or .., or ends in / and has content")
                }
            }
            Some(version) => {
                Some(Item::File(Listed { path: path.to_owned(), size: object.size, mtime_ns: object.mtime_ns, version }))
            }
        }
    }
}

enum Next {
    First,
    After(String),
    End,
}

impl Origin for S3 {
    fn uri(&self) -> &str {
        &self.source.uri
    }

    fn list(&self) -> BoxStream<'_, Result<Item, Error>> {
        let pages = stream::unfold(Next::First, move |next| async move {
            let token = match next {
                Next::First => None,
                Next::After(token) => Some(token),
                Next::End => return None,
            };
            Some(match self.page(token).await {
                Ok((page, Some(token))) if page.objects.len() < PAGE_ENDLESS => (Ok(page), Next::After(token)),
                Ok((page, _)) => (Ok(page), Next::End),
                Err(e) => (Err(e), Next::End),
            })
        });
        pages
            .map(move |page| match page {
                Ok(page) => stream::iter(page.objects).filter_map(move |o| async move { self.item(o).map(Ok) }).boxed(),
                Err(e) => stream::iter([Err(e)]).boxed(),
            })
            .flatten()
            .boxed()
    }

    fn read_range<'a>(&'a self, path: &'a str, version: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let key = format!("{}{path}", self.source.prefix);
            let what = Action::Read { key: &key };
            let location = Path::parse(&key).ok().filter(|p| p.as_ref() == key).ok_or_else(|| {
                Error::new(Reason::ObjectNotFound, format!("{key:?} cannot be asked for; take a new snapshot"))
            })?;
            let trace = Trace::default();
            let mut options = GetOptions {
                if_match: Some(quoted(version)),
                range: Some(GetRange::Bounded(range.clone())),
                ..GetOptions::default()
            };
            options.extensions.insert(trace.clone());
            let failed = |e: &object_store::Error| classify::error(&self.source, what, &trace.take(), e);
            let answer = self.store.get_opts(&location, options).await.map_err(|e| failed(&e))?;
            // Not every server heeds If-Match.
            if answer.meta.e_tag.as_deref().map(quoted) != Some(quoted(version)) {
                return Err(classify::changed(&self.source, &key));
            }
            let len = (range.end - range.start) as usize;
            let mut bytes = BytesMut::with_capacity(len);
            let mut body = answer.into_stream();
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(|e| failed(&e))?;
                if bytes.len() + piece.len() > len {
                    return Err(classify::odd(&self.source, what, "sent more bytes than asked for"));
                }
                bytes.extend_from_slice(&piece);
            }
            if bytes.len() < len {
                return Err(classify::odd(&self.source, what, "sent fewer bytes than asked for"));
            }
            Ok(bytes.freeze())
        })
    }
}

/// As If-Match wants it: some servers list ETags without their quotes.
fn quoted(version: &str) -> String {
    if version.ends_with('"') { version.to_owned() } else { format!("\"{version}\"") }
}

#[cfg(test)]
mod tests;
