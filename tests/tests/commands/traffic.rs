//! Traffic is counted by backend id, and ids are given again: nobody may be shown what another has had.

use anyhow::{Result, ensure};
use vmlb_agent::bpf::PinnedMap;
use vmlb_agent::counts::traffic::TrafficMap;
use vmlb_agent::tables::pinned::PinnedTables;
use vmlb_agent::tables::{Change, Record, RecordKey, Tables};
use vmlb_common::abi::{BackendName, Traffic, names};
use vmlb_tests::skip::unless_unable;

use super::scale::Maps;

const ID: u32 = 7;

fn name(uid: u8, node: u8) -> Change {
    let name = BackendName {
        uid: [uid; 40],
        namespace: [b'a'; 64],
        name: [b'b'; 64],
        node: [node; 64],
        vm: 1,
        weight: 100,
        pad: 0,
    };
    Change::Put(Record::BackendName(ID, Box::new(name)))
}

#[test]
fn an_id_that_goes_to_another_backend_begins_at_zero() {
    unless_unable("an_id_that_goes_to_another_backend_begins_at_zero", || {
        let maps = Maps::empty(16)?;
        let mut tables = PinnedTables::open(&maps.pins())?;
        let had = Traffic { requests: 3, request_octets: 120, replies: 2, reply_octets: 80, opened: 1 };
        let raw: PinnedMap<u32, Traffic> = PinnedMap::open(&maps.pins(), names::TRAFFIC)?;
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
        let count = || raw.put_per_cpu(&ID, &vec![had; cpus]);
        let opened = || -> Result<u64> {
            Ok(TrafficMap::open(&maps.pins())?.read(ID + 1)?.get(&ID).map_or(0, |traffic| traffic.opened))
        };
        tables.write(&[name(b'1', b'x')])?;
        count()?;
        // A VM that moves keeps its count.
        tables.write(&[name(b'1', b'y')])?;
        ensure!(opened()? == u64::try_from(cpus)?);
        tables.write(&[name(b'2', b'y')])?;
        ensure!(opened()? == 0);
        count()?;
        tables.write(&[Change::Remove(RecordKey::BackendName(ID))])?;
        ensure!(opened()? == 0);
        Ok(())
    });
}
