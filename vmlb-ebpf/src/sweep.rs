//! The ageing pass: every entry of every flow table through `datapath::sweep`.

use core::ffi::c_void;
use core::ptr::NonNull;

use vmlb_common::abi::{Affinity, ClientKey, Flow, FlowKey, Reply, ReplyKey, WireKey};
use vmlb_common::datapath::sweep;
use vmlb_common::family::{Family, V4, V6};
use vmlb_common::kernel::{Stage, Tables};
use vmlb_common::live::{Live, Word};

use crate::maps::{self, Node};

#[inline(always)]
fn flow<F: Family>(stage: Stage, key: *mut c_void, value: *mut c_void)
where
    Node: Tables<F>,
{
    if let Some(value) = NonNull::new(value.cast::<Flow<F::Address>>()) {
        // SAFETY: the helper gives pointers to a key and a value of the map being walked.
        let (key, live) = unsafe { (key.cast::<FlowKey<F::Address>>().read(), Live::new(value)) };
        sweep::flow(&Node, stage, &key, live);
    }
}

#[inline(always)]
fn reply<F: Family>(stage: Stage, key: *mut c_void, value: *mut c_void)
where
    Node: Tables<F>,
{
    if let Some(value) = NonNull::new(value.cast::<Reply<F::Address>>()) {
        // SAFETY: as above.
        let (key, live) = unsafe { (key.cast::<ReplyKey<F::Address>>().read(), Live::new(value)) };
        sweep::reply(&Node, stage, &key, live);
    }
}

#[inline(always)]
fn inherited<F: Family>(_: Stage, key: *mut c_void, value: *mut c_void)
where
    Node: Tables<F>,
{
    if let Some(value) = NonNull::new(value.cast::<u32>()) {
        // SAFETY: as above; `seen` is the entry's only field.
        let (key, seen) = unsafe { (key.cast::<WireKey<F::Address>>().read(), Word::new(value)) };
        sweep::inherited(&Node, &key, seen);
    }
}

#[inline(always)]
fn client<F: Family>(_: Stage, key: *mut c_void, value: *mut c_void)
where
    Node: Tables<F>,
{
    // SAFETY: as above; entries are replaced whole, never written in place.
    let (key, known) = unsafe { (key.cast::<ClientKey<F::Address>>().read(), value.cast::<Affinity>().read()) };
    sweep::client(&Node, &key, &known);
}

macro_rules! callbacks {
    ($($name:ident $what:ident $family:ident $stage:ident;)*) => {
        $(
            pub(crate) extern "C" fn $name(_: *mut c_void, key: *mut c_void, value: *mut c_void, _: *mut c_void) -> i64 {
                $what::<$family>(Stage::$stage, key, value);
                0
            }
        )*
    };
}

callbacks! {
    flow_v4 flow V4 Established;
    flow_v6 flow V6 Established;
    half_flow_v4 flow V4 Half;
    half_flow_v6 flow V6 Half;
    reply_v4 reply V4 Established;
    reply_v6 reply V6 Established;
    half_reply_v4 reply V4 Half;
    half_reply_v6 reply V6 Half;
    inherited_v4 inherited V4 Established;
    inherited_v6 inherited V6 Established;
    client_v4 client V4 Established;
    client_v6 client V6 Established;
}

/// One pass over all tables.
#[inline(always)]
pub(crate) fn pass() {
    maps::flows_v4();
    maps::flows_v6();
    maps::half_flows_v4();
    maps::half_flows_v6();
    maps::replies_v4();
    maps::replies_v6();
    maps::half_replies_v4();
    maps::half_replies_v6();
    maps::inherited_v4();
    maps::inherited_v6();
    maps::affinity_v4();
    maps::affinity_v6();
}
