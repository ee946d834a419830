//! One controller per kind.

pub(crate) mod cache_dataset;
