//! Daemons of a node, at random.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{After, Faults, each};
use crate::dataset::mix;
use crate::report::say;
use crate::scenarios::larder::SYSTEM;
use crate::scenarios::takeover::{HOLDERS, is_ready, kill, serving};

/// A container that was killed may be taken for a whole one for so long: the kubelet looks now and then.
const UNNOTICED: Duration = Duration::from_secs(5);
/// Faults between two looks at the readers.
const BATCH: usize = 8;

/// What may die.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// The process that serves; twice in the list, because it has most to lose.
    Serving,
    /// One of [`HOLDERS`].
    Holder(usize),
    /// A worker of the node.
    Worker,
    Operator,
    Kubelet,
}

const VICTIMS: [Victim; 9] = [
    Victim::Serving,
    Victim::Serving,
    Victim::Holder(0),
    Victim::Holder(1),
    Victim::Holder(2),
    Victim::Holder(3),
    Victim::Worker,
    Victim::Operator,
    Victim::Kubelet,
];

/// Of the holders of a node's mounts never more than two are away at once, and never both containers of the mounter: more is not
/// promised. The same seed (`SEED`) gives the same choice.
pub(super) fn kills<'f>(faults: &Faults<'f>, after: After<'_, 'f>) -> Result<usize> {
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().with_context(|| format!("SEED={text} is not a number"))?,
        Err(_) => super::watch::now()?,
    };
    say(format!("  random-kills: SEED={seed}"));
    let end = Instant::now() + Duration::from_secs(if faults.quick { 40 } else { 30 * 60 });
    let mut random = Random { faults, state: seed, killed: [None; 4] };
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    while Instant::now() < end {
        each(faults, after, 1, |_| {
            let mut done = 0;
            while done < BATCH && Instant::now() < end {
                let victim = VICTIMS[random.below(VICTIMS.len())];
                if random.strike(victim)? {
                    *counts.entry(format!("{victim:?}")).or_default() += 1;
                    done += 1;
                }
                std::thread::sleep(Duration::from_millis(200 + random.below(1500) as u64));
            }
            Ok(())
        })?;
    }
    say(format!("  random-kills: {counts:?}"));
    Ok(counts.values().sum())
}

struct Random<'r, 'f> {
    faults: &'r Faults<'f>,
    state: u64,
    /// When each of the holders was killed last.
    killed: [Option<Instant>; 4],
}

impl Random<'_, '_> {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        self.state += 1;
        usize::try_from(mix(self.state) % limit as u64).unwrap_or_default()
    }

    /// False: not now.
    fn strike(&mut self, victim: Victim) -> Result<bool> {
        let Faults { lab, node, .. } = self.faults;
        match victim {
            Victim::Serving | Victim::Holder(_) => {
                let away = self.away()?;
                let Some(more) = more_may_go(victim, &away) else { return Ok(false) };
                match more {
                    None => serving(lab, node)?.signal(Signal::SIGKILL)?,
                    Some(holder) => {
                        kill(lab, node, &[HOLDERS[holder]])?;
                        self.killed[holder] = Some(Instant::now());
                    }
                }
            }
            Victim::Worker => {
                let pods = lab.cluster.pods(SYSTEM, "app.kubernetes.io/component=worker")?;
                let mine: Vec<_> = pods
                    .iter()
                    .filter(|pod| pod["spec"]["nodeName"] == node.name() && is_ready(pod, "worker"))
                    .filter_map(|pod| pod["metadata"]["name"].as_str())
                    .collect();
                ensure!(!pods.is_empty(), "there are no workers");
                if mine.is_empty() {
                    return Ok(false);
                }
                let name = mine[self.below(mine.len())];
                // It may have died for another reason just now.
                return Ok(lab.cluster.kill_container(SYSTEM, name, "worker").is_ok());
            }
            Victim::Operator => {
                let pods = lab.cluster.pods(SYSTEM, "app.kubernetes.io/component=operator")?;
                let name = pods.first().and_then(|pod| pod["metadata"]["name"].as_str()).context("no operator")?;
                return Ok(lab.cluster.kill_container(SYSTEM, name, "operator").is_ok());
            }
            Victim::Kubelet => node.restart_kubelet()?,
        }
        Ok(true)
    }

    /// Which of the holders are not there, or not known to be.
    fn away(&self) -> Result<[bool; 4]> {
        let mut away = [true; 4];
        for (at, (component, container)) in HOLDERS.iter().enumerate() {
            if self.killed[at].is_some_and(|killed| killed.elapsed() < UNNOTICED) {
                continue;
            }
            let pods = self.faults.lab.cluster.pods(SYSTEM, &format!("app.kubernetes.io/component={component}"))?;
            let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == self.faults.node.name());
            away[at] = !pod.is_some_and(|pod| is_ready(pod, container));
        }
        Ok(away)
    }
}

/// None: not now. Else the holder that is to be killed, or none for the process that serves.
fn more_may_go(victim: Victim, away: &[bool; 4]) -> Option<Option<usize>> {
    let [.., standby, mounter] = *away;
    let gone = away.iter().filter(|away| **away).count();
    match victim {
        Victim::Serving if gone <= 1 => Some(None),
        Victim::Holder(at) if away[at] || gone > 1 => None,
        Victim::Holder(2 | 3) if standby || mounter => None,
        Victim::Holder(at) => Some(Some(at)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_two_are_away_and_never_both_containers_of_the_mounter() {
        let none = [false; 4];
        assert_eq!(more_may_go(Victim::Serving, &none), Some(None));
        assert_eq!(more_may_go(Victim::Holder(3), &none), Some(Some(3)));
        let keeper = [true, false, false, false];
        assert_eq!(more_may_go(Victim::Serving, &keeper), Some(None));
        assert_eq!(more_may_go(Victim::Holder(0), &keeper), None, "it is away already");
        assert_eq!(more_may_go(Victim::Holder(1), &keeper), Some(Some(1)));
        assert_eq!(more_may_go(Victim::Holder(1), &[true, false, true, false]), None);
        assert_eq!(more_may_go(Victim::Serving, &[true, true, false, false]), None);
        assert_eq!(more_may_go(Victim::Holder(2), &[false, false, false, true]), None);
    }
}
