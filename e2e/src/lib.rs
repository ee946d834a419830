//! A real local Kubernetes cluster, and the tests of Larder on it.
//!
//! ```text
//! main ── tools      pinned programs in ~/.cache/larder
//!      ── capsule    namespaces in which everything runs, and nothing stays
//!      └─ lab ┬ cluster   etcd … kubelets; kubectl, helm, exec, waiting
//!             ├ registry  where users push images and nodes pull them
//!             ├ prometheus  scrapes Larder, for the test of its metrics
//!             ├ s3        the origin: an S3 server with TLS and a log of every byte it sent
//!             └ dataset   files to serve, with a manifest of their digests
//!         suite ── scenarios   functions `fn(&Lab) -> anyhow::Result<()>`
//!         outside              tests of the harness, which start it again on the machine
//! ```
//!
//! There is no async here and no Kubernetes client library: what a user does with kubectl and helm, the tests do with
//! kubectl and helm.

pub mod capsule;
pub mod ci;
pub mod cluster;
pub mod commands;
pub mod dataset;
mod http;
pub mod images;
pub mod lab;
pub mod lanes;
pub mod outside;
pub mod pki;
pub mod process;
pub mod product;
pub mod prometheus;
pub mod readme;
pub mod registry;
pub mod report;
pub mod run_dir;
pub mod s3;
pub mod scenarios;
pub mod suite;
pub mod tools;
