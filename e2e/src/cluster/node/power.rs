//! Power: everything on a node ends at once, and comes back with what is on its disks.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Node, Running};
use crate::capsule::cgroup;

/// A process that was killed is gone in this time, even one with gigabytes of memory.
const DEATH: Duration = Duration::from_secs(20);

impl Node {
    /// Switches the node off and on again, as after a power failure.
    ///
    /// # Errors
    /// As [`Node::power_off`] and [`Node::power_on`].
    pub fn reboot(&self) -> Result<()> {
        self.power_off()?;
        self.power_on()
    }

    /// Takes the power away: no process says goodbye, no connection is closed. Processes, mounts, tmpfs, interfaces,
    /// packet filters and cgroups are gone; the disks stay.
    ///
    /// # Errors
    /// Something does not go.
    pub fn power_off(&self) -> Result<()> {
        self.host.unplug()?;
        self.end_everything()?;
        cgroup::remove_node(self.run.id(), self.name())
    }

    /// Starts what a machine starts by itself: containerd, kube-proxy and the kubelet, which starts the pods. They are not
    /// waited for.
    ///
    /// # Errors
    /// One of the programs did not start.
    pub fn power_on(&self) -> Result<()> {
        cgroup::create(self.run.id(), self.name())?;
        self.host.plug_in()?;
        self.start_runtime(&[])?;
        self.start_kubelet()
    }

    /// Ends every process on the node, those in containers too.
    pub(in crate::cluster) fn end_everything(&self) -> Result<()> {
        let Running { holder, containerd, proxy, kubelet } = std::mem::take(&mut *self.running()?);
        let own = holder.as_ref().and_then(|holder| mounts_of(holder.pid()));
        let deadline = Instant::now() + DEATH;
        // None of the node's programs starts another one once the first three are dead.
        for component in [kubelet, proxy, containerd].iter_mut().flatten() {
            component.stop();
        }
        loop {
            // The containers' shims, which outlive containerd by design, are in the node's mount namespace.
            let on_the_node = every_process().filter(|pid| own.is_some() && mounts_of(*pid) == own);
            let in_containers = cgroup::processes(self.run.id(), self.name()).into_iter().map(|(pid, _)| pid);
            let victims: Vec<i32> = on_the_node.chain(in_containers).filter(|pid| *pid > 1).collect();
            if victims.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "{}: these processes do not die: {victims:?}", self.name());
            for pid in victims {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(mut holder) = holder {
            holder.stop();
        }
        Ok(())
    }
}

/// The mount namespace of a process. A dead one that was not waited for yet has none.
fn mounts_of(pid: i32) -> Option<std::path::PathBuf> {
    fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns/mnt")).ok()
}

fn every_process() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
