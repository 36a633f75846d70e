//! Root asks a server as its owner: `peer` in `pg_hba.conf`, which packages write, lets in whoever the
//! system says is connecting, and that must not be root.

use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;

/// This thread is somebody else as long as this value lives. Only its effective user changes, so that it
/// can change back.
#[derive(Debug)]
pub(super) struct Borrowed(());

impl Borrowed {
    /// Takes a user's identity; `None` where we are not root, or the user is.
    pub(super) fn of(uid: u32) -> Option<Self> {
        if !geteuid().is_root() || uid == 0 {
            return None;
        }
        set_thread_res_uid(None, Some(Uid::from_raw(uid)), None)
            .ok()
            .map(|()| Self(()))
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // Root may always; without it this process would only be able to do less.
        let _ = set_thread_res_uid(None, Some(Uid::ROOT), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_given_back() {
        let before = geteuid();
        let borrowed = Borrowed::of(12_345);
        assert_eq!(borrowed.is_some(), before.is_root());
        assert_eq!(
            geteuid().as_raw(),
            if before.is_root() { 12_345 } else { before.as_raw() }
        );
        drop(borrowed);
        assert_eq!(geteuid(), before);
        assert!(Borrowed::of(0).is_none());
    }
}
