//! What only looks needs to reach the control sockets and to read the journals, and nothing else that root may do.

use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_keep_capabilities};

use crate::service::protocol;

/// `nobody` of every distribution: owns no file.
const NOBODY: Uid = Uid::from_raw(65534);
/// Journals are root's, and where they are is only known when there are some.
const KEPT: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;

#[derive(Debug, thiserror::Error)]
#[error(
    "root's privileges can't be given up: leave it CAP_SETUID and CAP_SETGID for that, or start it as another user of the group \
     `afterwrite`"
)]
pub struct PrivilegesError(#[from] std::io::Error);

/// Of root: this process goes on as `nobody`, in the group that may ask for the status. It may still read every file and can write
/// none, nor open a device for writing, nor speak as root to a protection. Who is not root keeps what it has.
///
/// To be called while there is one thread only.
///
/// # Errors
/// If any of that is refused: it must not go on then.
pub fn give_up_privileges() -> Result<(), PrivilegesError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    change(protocol::group()).map_err(PrivilegesError)
}

fn change(group: Gid) -> std::io::Result<()> {
    set_no_new_privs()?;
    set_keep_capabilities(true)?;
    setgroups(&[group])?;
    setresgid(group, group, group)?;
    setresuid(NOBODY, NOBODY, NOBODY)?;
    let kept = capabilities(None)?.permitted & KEPT;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
