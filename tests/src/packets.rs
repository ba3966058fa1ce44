//! Packets that people can read, a node to give them to, and stories: tables of *what it says, packet in, verdict, packet
//! out whole*, which run on the host ([`bench::Host`]) and, by the parity tests, in the kernel.

pub mod bench;
pub mod frame;
pub mod random;
pub mod records;
pub mod stories;
pub mod story;
pub mod world;
pub mod wrapped;
