//! The datapath on the host: tables of packets, hostile packets, and laws.

#[path = "packets/hostile.rs"]
mod hostile;
#[path = "packets/laws.rs"]
mod laws;
#[path = "packets/pairs.rs"]
mod pairs;
#[path = "packets/races.rs"]
mod races;
#[path = "packets/tagged.rs"]
mod tagged;

use vmlb_tests::address::Family;
use vmlb_tests::packets::bench::Host;
use vmlb_tests::packets::story::{self, Driver};

#[test]
fn every_story_comes_out_as_it_says() {
    let mut steps = 0;
    for family in Family::ALL {
        for story in story::all(family).into_iter().chain(story::of_moments(family)) {
            for driver in [Driver::Xdp, Driver::Tc] {
                story.tell(&mut Host::of_stories(), family, driver);
                steps += story.lines().len();
            }
        }
    }
    println!("{steps} packets and changes");
    assert!(steps > 1000, "{steps} steps");
}
