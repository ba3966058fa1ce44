//! The stories, by subject.

use super::story::Story;
use super::world::Net;

mod carried;
mod clamp;
mod clients;
mod device;
mod ends;
mod errors;
mod foreign;
mod fragments;
mod hops;
mod local;
mod malformed;
mod migration;
mod overlay;
mod peer;
mod proof;
mod remote;
mod snat;
mod tunnel;
mod without;

/// All of them, told with the addresses of `net`.
pub fn all(net: Net) -> Vec<Story> {
    let subjects: [fn(Net) -> Vec<Story>; 19] = [
        local::stories,
        remote::stories,
        device::stories,
        without::stories,
        proof::stories,
        ends::stories,
        snat::stories,
        hops::stories,
        foreign::stories,
        malformed::stories,
        clients::stories,
        errors::stories,
        migration::stories,
        overlay::stories,
        tunnel::stories,
        fragments::stories,
        carried::stories,
        clamp::stories,
        peer::stories,
    ];
    subjects.into_iter().flat_map(|subject| subject(net)).collect()
}

/// Those in which moments count: for a clock that stands still, which the kernel's does not.
pub fn of_moments(net: Net) -> Vec<Story> {
    snat::stories_of_moments(net)
}
