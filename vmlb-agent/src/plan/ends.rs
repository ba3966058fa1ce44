//! Where each backend is to be found: endpoints are written at the side that packets do not go by, then the backend is turned
//! to it. One plan takes one step; what needs more is unfinished and goes on with the next.

use std::net::IpAddr;

use vmlb_common::abi::{BackendFlags, Turn};

use super::{Endpoint, Installation};
use crate::desired::backend::{BackendView, End};
use crate::identity::Identity;
use crate::index::Other;
use crate::index::slice::Family;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// One side of a backend, by family.
type Side = [Option<Endpoint>; 2];

fn side_of(end: &End, tag: u32) -> Side {
    let flags = BackendFlags::PRESENT | if end.is_local { BackendFlags::LOCAL } else { 0 };
    FAMILIES.map(|family| {
        let address = end.addresses.keys().copied().find(|address| Family::of(*address) == family)?;
        Some(Endpoint { flags, address, node: end.hosts.beside(address), tag })
    })
}

impl Installation {
    /// What is at a side.
    fn installed_side(&self, id: u32, side: u32) -> Side {
        FAMILIES.map(|family| self.backends.installed(&(Turn::place(id, side), family)).copied())
    }

    fn want_side(&mut self, id: u32, side: u32, wanted: Side) {
        for (family, endpoint) in FAMILIES.into_iter().zip(wanted) {
            self.backends.want((Turn::place(id, side), family), endpoint);
        }
    }

    /// A backend is to be where `view` says. `is_fresh`: no packet has a reason to look for it yet. Tells whether that is
    /// all there is to do.
    pub(super) fn want_ends(
        &mut self,
        id: u32,
        identity: &Identity,
        view: &BackendView,
        is_fresh: bool,
    ) -> bool {
        let tag = identity.tag();
        let present = side_of(&view.present, tag);
        let other = view.other.as_ref().map_or([None; 2], |beside| side_of(&beside.end, tag));
        let is_expected = view.other.as_ref().is_some_and(|beside| beside.other == Other::Expected);
        let known = self.turns.known(id);
        let (here, there) = (known.side(), 1 - known.side());
        let (at_here, at_there) = (self.installed_side(id, here), self.installed_side(id, there));
        let is_empty = is_fresh && at_here == [None; 2] && !known.is_expected();
        if at_here == present || is_empty {
            self.want_side(id, here, present);
            if at_there == other || !known.is_expected() {
                self.want_side(id, there, other);
                self.turns.want(id, known.expecting(is_expected));
                return true;
            }
            // The VM may show itself there at any moment: first it is not expected any more.
            self.want_side(id, there, at_there);
            self.turns.want(id, known.expecting(false));
            return false;
        }
        if at_there != present && known.is_expected() {
            self.want_side(id, here, at_here);
            self.want_side(id, there, at_there);
            self.turns.want(id, known.expecting(false));
            return false;
        }
        self.want_side(id, there, present);
        self.turns.want(id, known.turned());
        if other == [None; 2] {
            // Goes after the turn.
            self.want_side(id, here, other);
            return true;
        }
        self.want_side(id, here, at_here);
        at_here == other && !is_expected
    }

    /// A backend is nowhere.
    pub(super) fn want_no_ends(&mut self, id: u32) {
        self.turns.want(id, self.turns.known(id).expecting(false));
        self.want_side(id, 0, [None; 2]);
        self.want_side(id, 1, [None; 2]);
    }

    /// The side of a backend at which an address is, or will be.
    pub(super) fn side_with(&self, id: u32, address: IpAddr) -> u32 {
        let present = self.turns.wanted(id).side();
        let has = |side: u32| {
            let key = (Turn::place(id, side), Family::of(address));
            self.backends.wanted(&key).is_some_and(|endpoint| endpoint.address == address)
        };
        if !has(present) && has(1 - present) { 1 - present } else { present }
    }

    /// Where a backend is installed as being: addresses, and those of their nodes.
    pub(crate) fn installed_ends(&self, identity: &Identity) -> Vec<(IpAddr, Option<IpAddr>)> {
        let Some(id) = self.backend_id(identity) else { return Vec::new() };
        let side = self.installed_side(id, self.turns.known(id).side());
        side.into_iter().flatten().map(|endpoint| (endpoint.address, endpoint.node)).collect()
    }

    /// Whether the other side of a backend is installed and expected, and which that is.
    #[must_use]
    pub fn expects(&self, id: u32) -> Option<u32> {
        let known = self.turns.known(id);
        known.is_expected().then_some(1 - known.side())
    }

    /// The present side of a backend.
    #[must_use]
    pub fn present_side(&self, id: u32) -> u32 {
        self.turns.known(id).side()
    }
}
