//! What a backend is, wherever it runs and whatever its address: the UID of the VirtualMachineInstance, else of the pod,
//! else an address. It is stored in `backend_names`, so it survives the agent, and it seeds Maglev, so it is the same on
//! every node.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::maglev::digest;

/// A backend's identity: at most 40 octets of text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(Arc<str>);

impl Identity {
    /// Octets that `BackendName::uid` has room for.
    pub const MAX: usize = 40;

    /// The identity of a UID. A UID that is too long (none that the API server makes) is replaced by its digest.
    #[must_use]
    pub fn of_uid(uid: &str) -> Self {
        if uid.len() <= Self::MAX {
            return Self(uid.into());
        }
        let (high, low) = (digest(1, uid.as_bytes()), digest(2, uid.as_bytes()));
        Self(format!("digest-{high:016x}{low:016x}").into())
    }

    /// The same of a UID that is kept elsewhere too.
    #[must_use]
    pub fn of_shared(uid: &Arc<str>) -> Self {
        if uid.len() <= Self::MAX { Self(uid.clone()) } else { Self::of_uid(uid) }
    }

    /// The identity of what is only known by its address; the longest IPv6 address has 39 octets.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        Self(address.to_string().into())
    }

    /// What tunnels call the backend: 15 bits, the same on every node.
    #[must_use]
    pub fn tag(&self) -> u32 {
        (digest(3, self.0.as_bytes()) & 0x7fff) as u32
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identity_fits_into_a_backend_name() {
        assert_eq!(Identity::of_uid(&"x".repeat(40)).as_str().len(), 40);
        let long = Identity::of_uid(&"x".repeat(41));
        assert!(long.as_str().len() <= Identity::MAX);
        assert_ne!(long, Identity::of_uid(&"x".repeat(42)));
        let address = IpAddr::from([0xffff; 8]);
        assert!(Identity::of_address(address).as_str().len() <= Identity::MAX);
    }
}
