//! How much heap the control plane of a node takes: objects, what they call for, and what is installed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::Value;
use vmlb_agent::object::Kind;
use vmlb_agent::serving::Serving;
use vmlb_agent::sync::Sync;
use vmlb_agent::tables::{Capacity, Change, InFlows, Record, Tables};
use vmlb_agent::watch::{Event, document};
use vmlb_common::abi::Turn;
use vmlb_tests::api_server::follower::facts;
use vmlb_tests::api_server::objects::{Endpoint, NODE, node, service, slice};

/// The system's allocator, counting.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(size: usize) {
    let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tables that take no memory.
struct Nowhere;

impl Tables for Nowhere {
    fn capacity(&self) -> Capacity {
        Capacity {
            services: 16_384,
            slots: 1 << 23,
            backends: 32_768,
            frontends: 65_536,
            pods: 65_536,
            targets: 131_072,
            eligible: 131_072,
            ranges: 65_536,
            tags: 131_072,
            nodes: 16_384,
        }
    }

    fn read(&self) -> Result<Vec<Record>> {
        Ok(Vec::new())
    }

    fn write(&mut self, _: &[Change]) -> Result<()> {
        Ok(())
    }

    fn turn(&self, _: u32) -> Result<Turn> {
        Ok(Turn::default())
    }

    fn in_flows(&self) -> Result<InFlows> {
        Ok(InFlows::default())
    }
}

fn apply(sync: &mut Sync, object: &Value) {
    for object in document::read("", object.to_string().as_bytes()).objects {
        sync.apply(Event::Apply { source: "".into(), object });
    }
}

fn mebibytes(octets: usize) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let octets = octets as f64;
    octets / 1_048_576.0
}

#[test]
fn five_thousand_services_of_five_endpoints_take_little_heap() -> Result<()> {
    let before = LIVE.load(Ordering::Relaxed);
    let used = || mebibytes(LIVE.load(Ordering::Relaxed) - before);
    let mut sync = Sync::new(NODE, Serving::default());
    sync.facts(facts());
    apply(&mut sync, &node(NODE, "192.0.2.1"));
    for number in 0..5000 {
        apply(&mut sync, &service(&format!("s{number}"), 25_000 + number));
        let endpoints = [0, 1, 2, 3, 4].map(|place| Endpoint::ready(number * 5 + place));
        apply(&mut sync, &slice(&format!("s{number}-x"), &format!("s{number}"), &endpoints));
    }
    for kind in Kind::ALL {
        sync.apply(Event::Listed(kind));
    }
    let objects = used();
    PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
    let report = sync.sync(&mut Nowhere, Instant::now());
    ensure!(report.error.is_none() && report.waiting.is_none(), "{report:?}");
    let peak = mebibytes(PEAK.load(Ordering::Relaxed) - before);
    let all = used();
    ensure!(all < 37.0, "{all:.1} MiB stay of 5,000 Services of five endpoints");
    println!(
        "objects {objects:.1} MiB, with what they call for {all:.1} MiB, during the first sync {peak:.1} MiB"
    );
    Ok(())
}
