//! An uplink on a VLAN, by XDP on what is on the wire. QinQ, bonds and what changes meanwhile are in `layer2.rs`, for which a
//! guest has time when it is asked: `cargo xtask test guest layer2`.

use vmlb_tests::feature::unless_lacking;
use vmlb_tests::layer2::{self, Shape};

#[test]
fn clients_on_a_trunk_are_served_behind_the_vlans_tag() {
    unless_lacking("clients_on_a_trunk_are_served_behind_the_vlans_tag", Shape::Vlan.features(), || {
        layer2::serves(&layer2::cluster(Shape::Vlan)?, Shape::Vlan)
    });
}
