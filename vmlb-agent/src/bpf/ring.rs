//! A pinned ring buffer as tokio waits for it.

use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Opens the pin at `path`. Must be called within a tokio runtime.
///
/// # Errors
/// When there is no such pin, or it is no ring buffer.
pub fn open(path: &Path) -> anyhow::Result<AsyncFd<RingBuf<MapData>>> {
    let ring = RingBuf::try_from(Map::RingBuf(MapData::from_pin(path)?))?;
    // SAFETY: the ring owns its descriptor, always answers the same one, and goes with the registration.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
}
