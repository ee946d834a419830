//! What users write and read: the kind `CacheDataset` of group `larder.dev`, and the names of everything that hangs on it.
//!
//! One file per kind. Types here are the source of `crds/`; a field is in the schema only when it is implemented, and what a
//! schema cannot say is said in CEL beside the field, with a test for each rule. No I/O and no state.
#![forbid(unsafe_code)]

pub mod cache_dataset;
pub mod conditions;
pub mod labels;
pub mod quantity;

pub use cache_dataset::{CacheDataset, CacheDatasetSpec, CacheDatasetStatus};
