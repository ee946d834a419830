//! One controller per kind.

pub(crate) mod cache_dataset;
pub(crate) mod startup_taint;
