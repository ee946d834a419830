//! The tests, in the order in which they run.

mod bad_input;
mod bench;
mod clients;
mod cluster;
mod damage;
mod datasets;
mod demo;
mod disk;
mod faults;
mod folder;
mod install;
mod keys;
mod larder;
mod metrics;
mod modes;
mod origin_trouble;
mod readme;
mod reboot;
mod replicas;
mod samples;
mod sanity;
mod script;
mod shroud;
mod startup_taint;
mod strangers;
mod stripes;
mod takeover;
mod training;
mod upgrade;

use std::time::Duration;

use crate::suite::Test;

pub use bench::bench;
pub use demo::demo;
pub use faults::faults;

/// Limit of tests that wait for back-offs.
const LONG: Duration = Duration::from_secs(600);

/// All tests.
pub const ALL: &[Test] = &[
    Test::new("cluster_nodes_are_what_they_claim_to_be", cluster::nodes_are_what_they_claim_to_be).without_larder(),
    Test::new("cluster_runs_pods_that_reach_each_other", cluster::runs_pods_that_reach_each_other).without_larder(),
    Test::new("cluster_restarts_a_killed_container", cluster::restarts_a_killed_container).without_larder(),
    Test::new("cluster_survives_a_kubelet_restart", cluster::survives_a_kubelet_restart).without_larder(),
    Test::new("origin_serves_objects_and_counts_them", cluster::origin_serves_objects_and_counts_them).without_larder(),
    Test::new("the_training_script_tells_right_from_wrong", script::the_training_script_tells_right_from_wrong)
        .without_larder(),
    Test::new("first_light", demo::first_light).within(Duration::from_secs(400)),
    Test::new(
        "a_byte_that_changed_on_a_disk_reaches_no_pod_after_the_worker_restarted",
        damage::a_byte_that_changed_on_a_disk_reaches_no_pod_after_the_worker_restarted,
    )
    .within(LONG),
    Test::new("a_training_job_notices_a_file_that_is_not_there", damage::a_training_job_notices_a_file_that_is_not_there)
        .within(LONG),
    Test::new(
        "datasets_live_beside_each_other_also_with_the_same_name",
        datasets::datasets_live_beside_each_other_also_with_the_same_name,
    )
    .within(LONG),
    Test::new("twenty_idle_workers_of_a_node_take_little_memory", datasets::twenty_idle_workers_of_a_node_take_little_memory)
        .within(LONG),
    Test::new(
        "a_pod_that_comes_before_its_dataset_runs_when_it_is_ready",
        datasets::a_pod_that_comes_before_its_dataset_runs_when_it_is_ready,
    )
    .within(LONG),
    Test::new(
        "deletion_waits_for_pods_and_the_dataset_can_come_back",
        datasets::deletion_waits_for_pods_and_the_dataset_can_come_back,
    )
    .within(LONG),
    Test::new("killed_daemons_come_back_and_no_byte_is_wrong", datasets::killed_daemons_come_back_and_no_byte_is_wrong)
        .within(LONG),
    Test::new(
        "a_node_that_gains_the_label_gets_its_worker_and_share",
        datasets::a_node_that_gains_the_label_gets_its_worker_and_share,
    )
    .within(LONG),
    Test::new(
        "a_node_with_a_replica_takes_the_place_of_one_that_is_lost",
        replicas::a_node_with_a_replica_takes_the_place_of_one_that_is_lost,
    )
    .within(LONG),
    Test::new("a_large_file_lies_in_stripes_on_all_nodes", stripes::a_large_file_lies_in_stripes_on_all_nodes).within(LONG),
    Test::new("csi_sanity_passes_with_one_socket_and_with_two", sanity::csi_sanity_passes_with_one_socket_and_with_two)
        .within(LONG),
    Test::new("a_rebooted_node_comes_back_with_its_data", reboot::a_rebooted_node_comes_back_with_its_data).within(LONG),
    Test::new(
        "a_pod_waits_for_a_tainted_node_until_datasets_can_be_mounted_there",
        startup_taint::a_pod_waits_for_a_tainted_node_until_datasets_can_be_mounted_there,
    )
    .within(LONG),
    Test::new("a_dead_mount_is_an_error_and_never_an_empty_folder", shroud::a_dead_mount_is_an_error_and_never_an_empty_folder)
        .within(LONG),
    Test::new(
        "readers_notice_no_death_of_any_daemon_of_their_node",
        takeover::readers_notice_no_death_of_any_daemon_of_their_node,
    )
    .within(LONG),
    Test::new(
        "readers_notice_no_upgrade_of_all_daemons_and_no_rollback",
        upgrade::readers_notice_no_upgrade_of_all_daemons_and_no_rollback,
    )
    .within(LONG),
    Test::new(
        "a_passthrough_mount_reads_local_files_in_the_kernel",
        modes::a_passthrough_mount_reads_local_files_in_the_kernel,
    )
    .within(LONG),
    Test::new(
        "what_others_read_with_finds_every_byte_and_complains_of_nothing",
        clients::what_others_read_with_finds_every_byte_and_complains_of_nothing,
    )
    .within(LONG),
    Test::new(
        "prometheus_scrapes_all_daemons_and_every_panel_has_data",
        metrics::prometheus_scrapes_all_daemons_and_every_panel_has_data,
    )
    .within(LONG),
    Test::new(
        "nobody_without_the_right_certificate_gets_a_byte_or_a_call",
        strangers::nobody_without_the_right_certificate_gets_a_byte_or_a_call,
    )
    .within(LONG),
    Test::new("bad_credentials_are_named_and_heal", bad_input::bad_credentials_are_named_and_heal).within(LONG),
    Test::new("a_claim_that_a_quota_forbids_is_named_and_heals", bad_input::a_claim_that_a_quota_forbids_is_named_and_heals)
        .within(LONG),
    Test::new("an_untrusted_origin_is_named_and_heals", bad_input::an_untrusted_origin_is_named_and_heals).within(LONG),
    Test::new("an_expired_certificate_is_named_and_heals", bad_input::an_expired_certificate_is_named_and_heals).within(LONG),
    Test::new(
        "dns_that_is_down_is_named_and_cached_data_is_read",
        bad_input::dns_that_is_down_is_named_and_cached_data_is_read,
    )
    .within(LONG),
    Test::new("a_missing_disk_is_named_and_heals", bad_input::a_missing_disk_is_named_and_heals).within(LONG),
    Test::new("a_folder_that_all_nodes_share_is_a_source_too", folder::a_folder_that_all_nodes_share_is_a_source_too)
        .within(LONG),
    Test::new("a_full_disk_is_named_and_heals", disk::a_full_disk_is_named_and_heals).within(LONG),
    Test::new("a_disk_of_several_that_fails_leaves_the_others", disk::a_disk_of_several_that_fails_leaves_the_others)
        .within(LONG),
    Test::new(
        "a_dataset_gets_its_share_of_a_disk_that_another_one_has_filled",
        disk::a_dataset_gets_its_share_of_a_disk_that_another_one_has_filled,
    )
    .within(LONG),
    Test::new("a_quota_that_is_too_small_is_named_and_heals", disk::a_quota_that_is_too_small_is_named_and_heals).within(LONG),
    Test::new("missing_data_is_named_and_heals", bad_input::missing_data_is_named_and_heals).within(LONG),
    Test::new("keys_that_no_file_can_have_are_left_out_and_named", keys::keys_that_no_file_can_have_are_left_out_and_named)
        .within(LONG),
    Test::new(
        "an_origin_that_is_down_is_named_and_cached_data_is_read",
        bad_input::an_origin_that_is_down_is_named_and_cached_data_is_read,
    )
    .within(LONG),
    Test::new(
        "files_that_the_origin_does_not_give_are_named_and_heal",
        origin_trouble::files_that_the_origin_does_not_give_are_named_and_heal,
    )
    .within(LONG),
    Test::new(
        "helm_uninstall_spares_pods_and_a_new_install_finds_the_data",
        install::helm_uninstall_spares_pods_and_a_new_install_finds_the_data,
    )
    .within(LONG),
    Test::new("the_api_server_refuses_what_the_schema_forbids", bad_input::the_api_server_refuses_what_the_schema_forbids),
    Test::new("a_kubelet_with_another_root_folder_is_served_too", install::a_kubelet_with_another_root_folder_is_served_too)
        .within(LONG)
        .on_a_cluster(|spec| spec.kubelet_dir = "/var/lib/k0s/kubelet"),
    Test::new("plain_manifests_install_larder_too", install::plain_manifests_install_larder_too)
        .within(LONG)
        .on_its_own_cluster(),
    Test::new("the_readme_works_with_images_from_a_registry", readme::the_readme_works_with_images_from_a_registry)
        .within(LONG)
        .on_its_own_cluster(),
];
