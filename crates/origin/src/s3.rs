//! S3 and what speaks like it, through object_store.

mod classify;
mod list;
mod page;
mod read;
mod tries;
mod version;
mod wire;

use crate::{Access, Error, Item, Origin, Pace, Patience, Reason, Received, Source, source::Resolved};
use bytes::Bytes;
use classify::Action;
use futures::{StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use larder_core::catalog::Listed;
use list::Ask;
use object_store::{
    Certificate, ClientOptions, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    list::{PaginatedListOptions, PaginatedListStore as _},
    path::Path,
};
use page::Page;
use std::{ops::Range, sync::Arc};
use tries::{Failure, Tries};
use wire::{Connector, Trace};

/// Can the object be asked for by this key? object_store has no path with empty parts, `.`, `..` or control characters.
pub(crate) fn fetchable(key: &str) -> bool {
    Path::parse(key).is_ok_and(|p| p.as_ref() == key)
}

/// A prefix of a bucket.
#[derive(Debug)]
pub struct S3 {
    store: AmazonS3,
    source: Resolved,
    pace: Pace,
    patience: Patience,
}

impl S3 {
    /// Bytes received are added to `received`.
    ///
    /// # Errors
    /// A source, credentials or CA that cannot be used; nothing is asked from the origin yet.
    pub fn new(source: &Source, access: &Access, received: Arc<Received>) -> Result<Self, Error> {
        let anonymous = source.anonymous;
        let source = source.resolve()?;
        let plain = source.endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
        let mut options = ClientOptions::new()
            .with_connect_timeout(access.patience.connect)
            .with_read_timeout(access.patience.silence)
            .with_timeout_disabled()
            .with_allow_http(plain)
            // What is given is trusted instead of the system's roots; without TLS there is nothing to trust.
            .with_no_system_certificates(access.ca.is_some() || plain);
        if let Some(pem) = &access.ca {
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
            // Tried again by us: object_store knows nothing of Retry-After, nor of what else goes on at the same time.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_http_connector(Connector::new(received));
        if let Some(endpoint) = &source.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        builder = match access.credentials.clone() {
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
        Ok(Self { store, source, pace: access.pace.clone(), patience: access.patience })
    }

    async fn page(&self, ask: &Ask) -> Result<(Page, Option<String>), Error> {
        let mut tries = Tries::new(&self.pace, self.patience);
        loop {
            let began = tries.begin().await;
            match self.page_once(ask).await {
                Ok(page) => return Ok(page),
                Err(failure) => tries.again(began, failure).await?,
            }
        }
    }

    async fn page_once(&self, ask: &Ask) -> Result<(Page, Option<String>), Failure> {
        let trace = Trace::default();
        let mut extensions = http::Extensions::new();
        extensions.insert(trace.clone());
        let options = PaginatedListOptions {
            offset: ask.after.clone(),
            delimiter: ask.folders.then(|| "/".into()),
            page_token: ask.token.clone(),
            extensions,
            ..PaginatedListOptions::default()
        };
        let prefix = Some(ask.prefix.as_str()).filter(|p| !p.is_empty());
        let failed = |e: &object_store::Error| classify::failure(&self.source, Action::List, &trace.take(), e);
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
            Some(e_tag) => {
                let (size, mtime_ns) = (object.size, object.mtime_ns);
                Some(Item::File(Listed { path: path.to_owned(), size, mtime_ns, version: version::of(e_tag, size, mtime_ns) }))
            }
        }
    }
}

impl Origin for S3 {
    fn uri(&self) -> &str {
        &self.source.uri
    }

    fn list(&self) -> BoxStream<'_, Result<Item, Error>> {
        let pages = list::all(self).map(move |page| match page {
            Ok(objects) => stream::iter(objects).filter_map(move |o| async move { self.item(o).map(Ok) }).boxed(),
            Err(e) => stream::iter([Err(e)]).boxed(),
        });
        pages.flatten().boxed()
    }

    fn read_range<'a>(&'a self, path: &'a str, version: &'a str, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(self.read(path, version, range))
    }
}

#[cfg(test)]
mod tests;
