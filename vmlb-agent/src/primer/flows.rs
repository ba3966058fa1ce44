//! The tables of established flows, as the primer reads them.

use std::ops::ControlFlow;

use vmlb_common::abi::{Flow, FlowKey, names};
use vmlb_common::family::{Address4, Address6};

use super::{Established, Key};
use crate::bpf::PinnedMap;
use crate::pins::PinRoot;

/// Where flows are read.
pub trait Flows {
    /// Visits all of them; those that come or go meanwhile may be missed.
    ///
    /// # Errors
    /// When a table cannot be read to its end.
    fn each(&self, visit: &mut dyn FnMut(&Established)) -> anyhow::Result<()>;

    /// One of them, as it is now.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn get(&self, key: &Key) -> anyhow::Result<Option<Established>>;
}

/// The pinned tables.
#[derive(Debug)]
pub struct PinnedFlows {
    v4: PinnedMap<FlowKey<Address4>, Flow<Address4>>,
    v6: PinnedMap<FlowKey<Address6>, Flow<Address6>>,
}

impl PinnedFlows {
    /// Opens them.
    ///
    /// # Errors
    /// When one is missing or of another layout.
    pub fn open(root: &PinRoot) -> anyhow::Result<Self> {
        let [v4, v6] = names::FLOWS;
        Ok(Self { v4: PinnedMap::open(root, v4)?, v6: PinnedMap::open(root, v6)? })
    }
}

impl Flows for PinnedFlows {
    fn each(&self, visit: &mut dyn FnMut(&Established)) -> anyhow::Result<()> {
        self.v4.each(|key, flow| {
            visit(&Established::new(Key::V4(key), &key, flow));
            ControlFlow::Continue(())
        })?;
        self.v6.each(|key, flow| {
            visit(&Established::new(Key::V6(key), &key, flow));
            ControlFlow::Continue(())
        })
    }

    fn get(&self, key: &Key) -> anyhow::Result<Option<Established>> {
        match key {
            Key::V4(own) => Ok(self.v4.get(own)?.map(|flow| Established::new(*key, own, &flow))),
            Key::V6(own) => Ok(self.v6.get(own)?.map(|flow| Established::new(*key, own, &flow))),
        }
    }
}
