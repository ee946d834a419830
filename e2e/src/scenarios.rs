//! The tests, in the order in which they run.

mod cluster;
mod first_light;
mod larder;

use std::time::Duration;

use crate::suite::Test;

pub use first_light::demo;

/// All tests.
pub const ALL: &[Test] = &[
    Test::new("cluster_nodes_are_what_they_claim_to_be", cluster::nodes_are_what_they_claim_to_be).without_larder(),
    Test::new("cluster_runs_pods_that_reach_each_other", cluster::runs_pods_that_reach_each_other).without_larder(),
    Test::new("cluster_restarts_a_killed_container", cluster::restarts_a_killed_container).without_larder(),
    Test::new("cluster_survives_a_kubelet_restart", cluster::survives_a_kubelet_restart).without_larder(),
    Test::new("origin_serves_objects_and_counts_them", cluster::origin_serves_objects_and_counts_them).without_larder(),
    Test::new("first_light", first_light::first_light).within(Duration::from_secs(400)),
];
