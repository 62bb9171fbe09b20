//! The launcher as a visitor of a sandbox's namespaces: settings and connections that only a process in them can change.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::channel::{Channel, FromLauncher, ToLauncher};
use super::parked::{become_root, write_sysctls};
use super::{LaunchError, Step};
use crate::network::{self, sockets};
use crate::plan::SetupPlan;

/// Joins the user and network namespace in `descriptors`. With a plan it furnishes them as a parked launcher does its own: CRIU restores
/// neither settings nor interfaces. Then it resets connections when told, until the control socket ends.
pub(super) fn run(
    control: &Channel,
    plan: Option<&SetupPlan>,
    descriptors: Vec<OwnedFd>,
) -> Result<(), LaunchError> {
    let Ok([user, net]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err(io::Error::from_raw_os_error(libc::EPROTO)).step("read the namespaces");
    };
    move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))
        .step("join the network namespace")?;
    move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))
        .step("join the user namespace")?;
    become_root()?;
    if let Some(plan) = plan {
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .step("open /proc")?;
        write_sysctls(proc, plan)?;
        control.send(&FromLauncher::Inside, &[]).step("report")?;
        match control
            .receive::<ToLauncher>(None)
            .step("wait for the network")?
        {
            None => return Ok(()),
            Some((ToLauncher::NetworkReady, _)) => {}
            Some(_) => {
                return Err(io::Error::from_raw_os_error(libc::EPROTO))
                    .step("wait for the network");
            }
        }
        network::configure_inside(&plan.network).step("configure the network")?;
    }
    control.send(&FromLauncher::Furnished, &[]).step("report")?;
    loop {
        match control
            .receive::<ToLauncher>(None)
            .step("wait for an order")?
        {
            None => return Ok(()),
            Some((ToLauncher::Reset(which), _)) => {
                sockets::reset(which).step("reset connections")?;
                control.send(&FromLauncher::Furnished, &[]).step("report")?;
            }
            Some(_) => {
                return Err(io::Error::from_raw_os_error(libc::EPROTO)).step("wait for an order");
            }
        }
    }
}
