//! The node plugin as the kubelet sees it: real gRPC on its sockets, a real mounter, real mounts; a worker and an API server
//! that live in the test. Needs root and /dev/fuse; without them the tests say so and pass, except in CI, where they fail.

mod bad_input;
mod controller;
mod harness;

use harness::{Lab, answer_init, errno};
use larder_fuse::device;
use larder_proto::{
    csi::v1::{
        GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest, ProbeRequest,
    },
    pluginregistration::v1::{InfoRequest, RegistrationStatus},
};
use std::{
    fs,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_learns_who_we_are() {
    let Some(lab) = Lab::start().await else { return };
    let info = lab.registration().await.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.larder.dev"));
    assert_eq!(Path::new(&info.endpoint), lab.kubelet().join("plugins/csi.larder.dev/csi.sock"));
    let status = RegistrationStatus { plugin_registered: true, error: String::new() };
    lab.registration().await.notify_registration_status(status).await.unwrap();

    let mut identity = lab.identity().await;
    assert_eq!(identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner().name, "csi.larder.dev");
    assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    let capabilities = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap().into_inner();
    assert_eq!(capabilities.capabilities.len(), 1);
    let mut node = lab.node().await;
    assert_eq!(node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner().node_id, "gpu-1");
    assert_eq!(node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap().into_inner().capabilities.len(), 2);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_dataset_is_read_and_an_unpublished_one_leaves_nothing() {
    let Some(lab) = Lab::start().await else { return };
    let (one, two) = (lab.target("1"), lab.target("2"));
    for target in [&one, &two, &one, &two, &one] {
        lab.publish(target).await.unwrap();
    }
    for target in [&one, &two] {
        assert_eq!(lab.read(target, "dir/a").await.unwrap(), lab.content("dir/a"));
        let layers = lab.layers(target);
        assert_eq!(layers.len(), 2, "shroud and dataset, however often it is published: {layers:?}");
        assert_eq!(layers[0].source, "larder-shroud");
        let options = lab.options(target);
        assert!(["ro", "nosuid", "nodev"].iter().all(|o| options.contains(&(*o).to_owned())), "{options:?}");
    }
    assert_eq!(lab.layers(&one)[1].device, lab.layers(&two)[1].device, "one superblock for both");
    let read_ahead = fs::read_to_string(format!("/sys/class/bdi/0:{}/read_ahead_kb", lab.layers(&one)[1].device.1)).unwrap();
    assert_eq!(read_ahead.trim(), "4096");

    let stats = lab.stats(&one).await.unwrap();
    assert_eq!((stats[0].total, stats[0].used, stats[0].available), (4096, 4096, 0));
    assert_eq!(stats[1].total, 4, "root, folder, two files");

    lab.unpublish(&one).await.unwrap();
    assert!(!one.exists());
    assert_eq!(lab.read(&two, "b").await.unwrap(), lab.content("b"), "the other one goes on");
    assert_eq!(lab.stats(&one).await.unwrap_err().code(), Code::NotFound);
    lab.unpublish(&two).await.unwrap();
    lab.unpublish(&two).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_pods_at_once_share_one_superblock() {
    let Some(lab) = Lab::start().await else { return };
    let targets: Vec<_> = (0..50).map(|i| lab.target(&i.to_string())).collect();
    let calls = targets.iter().map(|t| lab.publish(t));
    for result in futures_all(calls).await {
        result.unwrap();
    }
    let devices: std::collections::BTreeSet<_> = targets.iter().map(|t| lab.layers(t).pop().unwrap().device).collect();
    assert_eq!(devices.len(), 1);
    for result in futures_all(targets.iter().map(|t| lab.unpublish(t))).await {
        result.unwrap();
    }
    lab.expect_clean().await;
    lab.stop().await;
}

/// All at once, each polled in turn by this task.
async fn futures_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (future, result) in &mut running {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(r) => *result = Some(r),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, result)| result).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_dataset_fell_off_sees_an_error_and_no_folder() {
    let Some(lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.publish(&target).await.unwrap();
    nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(errno(fs::read_dir(&target)), libc::ENOTCONN, "even for root");
    assert_eq!(errno(fs::write(target.join("x"), "lost")), libc::ENOTCONN);
    // The kubelet's next call puts it back.
    lab.publish(&target).await.unwrap();
    assert_eq!(lab.read(&target, "b").await.unwrap(), lab.content("b"));
    lab.unpublish(&target).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_superblock_is_replaced_by_the_next_publish() {
    let Some(lab) = Lab::start().await else { return };
    let (old, new) = (lab.target("old"), lab.target("new"));
    lab.publish(&old).await.unwrap();
    let device = lab.layers(&old)[1].device;
    larder_fuse::control::abort(device.1).unwrap();
    assert_eq!(errno(fs::read_dir(&old)), libc::ENOTCONN);
    assert_eq!(lab.stats(&old).await.unwrap_err().code(), Code::Unavailable);

    lab.publish(&new).await.unwrap();
    assert_ne!(lab.layers(&new)[1].device, device);
    assert_eq!(lab.read(&new, "b").await.unwrap(), lab.content("b"));
    assert_eq!(errno(fs::read_dir(&old)), libc::ENOTCONN, "a pod keeps what it has");
    lab.publish(&old).await.unwrap();
    assert_eq!(lab.read(&old, "b").await.unwrap(), lab.content("b"));
    larder_fuse::control::abort(lab.layers(&new)[1].device.1).unwrap();
    for target in [&old, &new] {
        lab.unpublish(target).await.unwrap();
    }
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dataset_and_pod_are_told_of_a_mount_that_has_ended() {
    let Some(mut lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.publish(&target).await.unwrap();
    larder_fuse::control::abort(lab.layers(&target)[1].device.1).unwrap();
    let told = lab.until_told("MountEnded", 2).await;
    let whom: Vec<_> = told.iter().map(|(kind, name, _)| (kind.as_str(), name.as_str())).collect();
    assert_eq!(whom, [("CacheDataset", "imagenet"), ("Pod", "reader")], "each once");
    assert!(told[0].2.contains("dataset vision/imagenet on node gpu-1 has ended"), "{}", told[0].2);
    // As after the death of everybody who held it: the next plugin finds it dead, and knows of whom.
    lab.restart_plugin().await;
    lab.until_told("MountEnded", 4).await;
    lab.publish(&target).await.unwrap();
    assert_eq!(lab.read(&target, "b").await.unwrap(), lab.content("b"));
    lab.unpublish(&target).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_dies_of_a_mount_that_has_ended_is_told_too() {
    let Some(lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.publish(&target).await.unwrap();
    larder_fuse::control::abort(lab.layers(&target)[1].device.1).unwrap();
    // Sooner than anybody looks.
    lab.unpublish(&target).await.unwrap();
    let told = lab.until_told("MountEnded", 2).await;
    let whom: Vec<_> = told.iter().map(|(kind, name, _)| (kind.as_str(), name.as_str())).collect();
    assert_eq!(whom, [("CacheDataset", "imagenet"), ("Pod", "reader")]);
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_the_kubelet_gives_up_on_is_finished_or_undone_and_can_come_again() {
    let Some(lab) = Lab::start().await else { return };
    // At every moment of a publish, and while it waits for the dataset.
    for (round, limit) in [1, 2, 5, 10, 20, 50, 100].into_iter().enumerate() {
        let target = lab.target(&round.to_string());
        if limit == 100 {
            lab.set_not_ready("ListingRunning", "wait");
        }
        let publish = tokio::time::timeout(Duration::from_millis(limit), lab.publish(&target));
        let given_up = publish.await.is_err();
        assert!(given_up || limit < 100, "it did not wait for the dataset");
        lab.set_ready();
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(status) = lab.publish(&target).await {
            // The first call is still at work.
            assert!(status.code() == Code::Aborted && Instant::now() < deadline, "{status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(lab.layers(&target).len(), 2, "given up after {limit} ms");
        assert_eq!(lab.read(&target, "b").await.unwrap(), lab.content("b"));
        lab.unpublish(&target).await.unwrap();
        lab.expect_clean().await;
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_mounter_hangs_no_call() {
    let Some(lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.publish(&target).await.unwrap();
    // In place of the dataset, a connection that somebody holds and nobody serves.
    let identity = lab.layers(&target)[1].source.clone();
    let fuse = device::open().unwrap();
    device::mount(fuse.as_fd(), &target, &identity).unwrap();

    let started = Instant::now();
    assert_eq!(lab.stats(&target).await.unwrap_err().code(), Code::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(lab.publish(&target).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(lab.read(&lab.publish_at("2").await, "b").await.unwrap(), lab.content("b"), "others are not held up");
    lab.unpublish(&target).await.unwrap();
    lab.unpublish(&lab.target("2")).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    drop(fuse);
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_a_mount_that_no_mounter_serves_do_not_wait_for_ever() {
    readers_do_not_wait_for_ever(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_a_mount_whose_record_is_damaged_do_not_wait_for_ever_either() {
    readers_do_not_wait_for_ever(true).await;
}

#[expect(clippy::unwrap_used, reason = "what a test cannot go on without")]
async fn readers_do_not_wait_for_ever(is_damaged: bool) {
    let Some(mut lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.publish(&target).await.unwrap();
    if is_damaged {
        fs::write(lab.record(), "").unwrap();
        lab.restart_plugin().await;
    }
    lab.stop_mounter().await;
    // In place of its connection, one that somebody holds.
    let identity = lab.layers(&target)[1].source.clone();
    let (fuse, superblock) = (device::open().unwrap(), lab.superblock(&identity));
    device::mount(fuse.as_fd(), &superblock, &identity).unwrap();
    let (looked, reading) = (superblock.clone(), Instant::now());
    let read = tokio::task::spawn_blocking(move || fs::read_dir(looked)).await.unwrap();
    assert!(device::is_dead(&read.unwrap_err()));
    assert!(reading.elapsed() >= Duration::from_secs(3), "{:?}", reading.elapsed());
    assert_eq!(errno(fs::read_dir(&superblock)), libc::ENOTCONN);
    lab.unpublish(&target).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_nobody_reads_waits_for_its_mounter_as_long_as_it_takes() {
    let Some(lab) = Lab::start().await else { return };
    // The mounter serves others, so that this one is asked whether it has ended.
    let superblock = lab.superblock("idle");
    fs::create_dir_all(&superblock).unwrap();
    let fuse = device::open().unwrap();
    device::mount(fuse.as_fd(), &superblock, "idle").unwrap();
    answer_init(&fuse);
    let minor = lab.layers(&superblock)[0].device.1;
    // Twice the limit, and a look.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(larder_fuse::control::waiting(minor).unwrap(), 1, "it was asked");
    // What waits is answered, and so the connection is there.
    let mut request = [0; 1 << 14];
    let length = nix::unistd::read(&fuse, &mut request).unwrap();
    assert!(length >= 40 && request[4..8] == 17u32.to_ne_bytes(), "statfs");
    drop(fuse);
    nix::mount::umount2(&superblock, nix::mount::MntFlags::MNT_DETACH).unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_shows_the_same_snapshot_whatever_restarts() {
    let Some(mut lab) = Lab::start().await else { return };
    let (old, new) = (lab.target("old"), lab.target("new"));
    lab.publish(&old).await.unwrap();
    lab.next_snapshot("dir/second");
    lab.restart_plugin().await;
    lab.publish(&old).await.unwrap();
    assert_eq!(errno(fs::metadata(old.join("dir/second"))), libc::ENOENT);
    lab.publish(&new).await.unwrap();
    assert_eq!(lab.read(&new, "dir/second").await.unwrap(), lab.content("dir/second"));
    // As after a reboot: the folders are there, the mounts are not, and the API server is not back yet.
    for target in [&old, &new] {
        let superblock = lab.superblock(&lab.layers(target)[1].source);
        for mounted in [target, target, &superblock] {
            nix::mount::umount2(mounted, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }
    lab.lose_dataset();
    // Nor is the mounter, at first.
    lab.stop_mounter().await;
    lab.restart_plugin().await;
    assert_eq!(lab.publish(&old).await.unwrap_err().code(), Code::Unavailable);
    assert!(lab.layers(&old).is_empty());
    lab.restart_plugin().await;
    lab.next_mounter().await;
    assert_eq!(lab.publish_at("old").await, old);
    assert_eq!(errno(fs::metadata(old.join("dir/second"))), libc::ENOENT);
    assert_eq!(lab.read(&old, "b").await.unwrap(), lab.content("b"));
    // The other pod was deleted meanwhile and its folder with it: its snapshot's superblock goes at the next start.
    fs::remove_dir(&new).unwrap();
    lab.restart_plugin().await;
    lab.unpublish(&old).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_finds_a_record_of_a_later_format_takes_nothing_away() {
    let Some(mut lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.publish(&target).await.unwrap();
    let record = lab.record();
    let (written, layers) = (fs::read_to_string(&record).unwrap(), lab.layers(&target));
    let later = written.replace(r#""version":1"#, r#""version":2"#);
    fs::write(&record, &later).unwrap();
    let told = lab.refused_plugin().await;
    for part in [record.to_str().unwrap(), "format 2", "up to 1", "go back to the release"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert_eq!(fs::read_to_string(&record).unwrap(), later);
    assert_eq!(lab.layers(&target), layers);
    assert_eq!(lab.layers(&lab.superblock(&layers[1].source)).len(), 1, "it is where it was");
    assert_eq!(lab.read(&target, "dir/a").await.unwrap(), lab.content("dir/a"));
    // The release that wrote it is back.
    fs::write(&record, written).unwrap();
    lab.next_plugin().await;
    lab.publish(&target).await.unwrap();
    assert_eq!(lab.layers(&target), layers);
    lab.unpublish(&target).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_damaged_is_there_again_after_the_next_publish() {
    let Some(mut lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.publish(&target).await.unwrap();
    let (record, layers) = (lab.record(), lab.layers(&target));
    let written = fs::read_to_string(&record).unwrap();
    fs::write(&record, &written[..written.len() / 2]).unwrap();
    lab.restart_plugin().await;
    lab.publish(&target).await.unwrap();
    assert_eq!(fs::read_to_string(&record).unwrap(), written);
    // Another pod comes and goes meanwhile.
    fs::write(&record, "").unwrap();
    lab.restart_plugin().await;
    let other = lab.publish_at("2").await;
    lab.unpublish(&other).await.unwrap();
    assert_eq!(lab.layers(&lab.superblock(&layers[1].source)).len(), 1, "it is where it was");
    lab.publish(&target).await.unwrap();
    assert_eq!(fs::read_to_string(&record).unwrap(), written);
    // With a newer snapshot there is no telling what was in it; the pod keeps what it has.
    fs::write(&record, "").unwrap();
    lab.next_snapshot("dir/second");
    lab.restart_plugin().await;
    lab.publish(&target).await.unwrap();
    assert_eq!(lab.layers(&target), layers);
    assert_eq!(lab.read(&target, "b").await.unwrap(), lab.content("b"));
    fs::write(&record, written).unwrap();
    lab.restart_plugin().await;
    lab.unpublish(&target).await.unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_no_pod_from_ending_and_no_plugin_from_starting() {
    let Some(mut lab) = Lab::start().await else { return };
    let state = lab.csi_folder().join("state");
    nix::mount::mount(Some("tiny"), &state, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=64k")).unwrap();
    let (one, two) = (lab.target("1"), lab.target("2"));
    for target in [&one, &two] {
        lab.publish(target).await.unwrap();
    }
    assert_eq!(errno(fs::write(state.join("fill"), vec![1; 1 << 20])), libc::ENOSPC);
    lab.unpublish(&one).await.unwrap();
    assert!(!one.exists());
    lab.restart_plugin().await;
    lab.publish(&two).await.unwrap();
    assert_eq!(lab.read(&two, "b").await.unwrap(), lab.content("b"));
    lab.unpublish(&two).await.unwrap();
    let left: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["fill"]);
    nix::mount::umount2(&state, nix::mount::MntFlags::empty()).unwrap();
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_is_not_ready_is_waited_for_and_then_named() {
    let Some(lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.set_not_ready("AccessDenied", "s3 says 403; check the Secret");
    let started = Instant::now();
    let status = lab.publish(&target).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("AccessDenied: s3 says 403; check the Secret"), "{}", status.message());
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    lab.expect_clean().await;

    // It becomes ready while the kubelet waits.
    let (published, ()) = tokio::join!(lab.publish(&target), async {
        lab.until_looked_at().await;
        lab.set_ready();
    });
    published.unwrap();
    lab.unpublish(&target).await.unwrap();
    lab.lose_dataset();
    assert_eq!(lab.publish(&target).await.unwrap_err().code(), Code::NotFound);
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_without_worker_or_mounter_is_unavailable_and_leaves_nothing() {
    let Some(mut lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.stop_worker();
    let status = lab.publish(&target).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
    assert!(status.message().contains("no worker has"), "{}", status.message());
    lab.expect_clean().await;
    lab.stop_mounter().await;
    let status = lab.publish(&target).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
    assert!(status.message().contains("larder-mounter"), "{}", status.message());
    lab.expect_clean().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_wait_for_one_mount_in_vain_are_all_told_so_in_time() {
    let Some(mut lab) = Lab::start().await else { return };
    let stalled = lab.stall_mounter().await;
    let targets: Vec<_> = (0..6).map(|i| lab.target(&i.to_string())).collect();
    let started = Instant::now();
    for result in futures_all(targets.iter().map(|t| lab.publish(t))).await {
        assert_eq!(result.unwrap_err().code(), Code::Unavailable);
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    stalled.abort();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unpublish_works_on_whatever_is_there() {
    let Some(lab) = Lab::start().await else { return };
    let target = lab.target("1");
    lab.unpublish(&target).await.unwrap();
    fs::write(&target, "a file in the way").unwrap();
    lab.unpublish(&target).await.unwrap();
    fs::create_dir(&target).unwrap();
    for _ in 0..3 {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("stack"), &target, Some("tmpfs"), flags, None::<&str>).unwrap();
    }
    assert_eq!(lab.publish(&target).await.unwrap_err().code(), Code::FailedPrecondition, "not ours to replace");
    lab.unpublish(&target).await.unwrap();
    assert!(!target.exists());
    fs::create_dir(&target).unwrap();
    fs::write(target.join("data"), "not ours to delete").unwrap();
    assert_eq!(lab.unpublish(&target).await.unwrap_err().code(), Code::Internal);
    assert!(target.join("data").exists());
    lab.stop().await;
}
