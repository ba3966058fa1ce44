//! A random walk of thousands of changes with faults between them. The seed is printed and may be given by
//! `VMLB_SEED`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use vmlb_agent::object::{Kind, ObjectRef};
use vmlb_tests::api_server::objects::{Endpoint, launcher, service, slice};
use vmlb_tests::api_server::suite::Suite;
use vmlb_tests::api_server::{ApiServer, Blow};

use crate::stage::{Folder, Stage, quick};
use crate::walk::meaning;

const STEPS: u32 = 4000;

/// Numbers that a seed determines (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u16) -> u16 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        u16::try_from(high % u64::from(end)).unwrap_or_default()
    }
}

fn object(kind: Kind, name: String) -> ObjectRef {
    ObjectRef::new(kind, "a", &name)
}

/// One change of one object.
fn change(stage: &Stage, dice: &mut Dice, pods: &mut BTreeSet<u16>) -> Result<()> {
    let number = dice.below(12);
    match dice.below(20) {
        0..3 => {
            let mut object = service(&format!("s{number}"), 30_000 + dice.below(14));
            if dice.below(3) == 0 {
                object["spec"]["externalTrafficPolicy"] = json!("Local");
            }
            if dice.below(8) == 0 {
                object["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
            }
            stage.server.put(object)?;
        }
        3 => stage.server.delete(&object(Kind::Service, format!("s{number}"))),
        4..13 => {
            let count = dice.below(5);
            let endpoints: Vec<Endpoint> =
                (0..count).map(|_| Endpoint { pod: dice.below(20), ready: dice.below(4) != 0 }).collect();
            let name = format!("s{number}-{}", dice.below(2));
            stage.server.put(slice(&name, &format!("s{number}"), &endpoints))?;
        }
        13 => stage.server.delete(&object(Kind::EndpointSlice, format!("s{number}-{}", dice.below(2)))),
        14..18 => {
            let pod = dice.below(20);
            pods.insert(pod);
            let mut object = launcher(pod);
            if dice.below(4) == 0 {
                object["status"]["phase"] = json!("Succeeded");
            }
            stage.server.put(object)?;
        }
        _ => {
            let pod = dice.below(20);
            pods.remove(&pod);
            stage.server.delete(&object(Kind::Pod, format!("p{pod}")));
        }
    }
    Ok(())
}

/// Something goes wrong.
fn fault(stage: &mut Stage, dice: &mut Dice) -> Result<()> {
    match dice.below(9) {
        0 => stage.server.strike(Blow::Cut),
        1 => stage.server.strike(Blow::CutLine),
        2 => stage.server.strike(Blow::BrokenLine),
        3 => stage.server.strike(Blow::Error(410, "Expired")),
        4 => stage.server.compact(),
        5 => {
            stage.server.compact();
            stage.server.strike(Blow::Cut);
        }
        6 => {
            stage.server.away();
            stage.follower.run(Duration::from_millis(5))?;
            stage.server.resume()?;
        }
        7 => {
            stage.server.behave(|faults| faults.truncated_lists = 1);
            stage.server.strike(Blow::Error(410, "Expired"));
        }
        _ => {
            let objects = stage.server.objects();
            stage.server.replace(objects)?;
        }
    }
    Ok(())
}

#[test]
fn after_thousands_of_changes_and_faults_the_tables_equal_those_built_from_scratch() -> Result<()> {
    let seed = std::env::var("VMLB_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed_0003_u64);
    println!("VMLB_SEED={seed}");
    let mut dice = Dice(seed | 1);
    let mut stage = Stage::set(quick())?;
    stage.server.behave(|faults| {
        faults.doubles = true;
        faults.bookmarks = Some(Duration::from_millis(100));
    });
    let mut pods: BTreeSet<u16> = (0..3).collect();
    let (mut faults, mut checks) = (0, 0);
    for step in 0..STEPS {
        change(&stage, &mut dice, &mut pods)?;
        if dice.below(8) == 0 {
            stage.follower.step(Duration::from_millis(1))?;
        }
        if dice.below(60) == 0 {
            let late = Kind::ALL[usize::from(dice.below(4))];
            stage.server.behave(|faults| faults.late = Some((late, Duration::from_millis(3))));
            fault(&mut stage, &mut dice)?;
            faults += 1;
        }
        if step % 500 == 499 {
            // Backends that no slice lists drain for as long as their pods live, which the past decides.
            for pod in std::mem::take(&mut pods) {
                stage.server.delete(&object(Kind::Pod, format!("p{pod}")));
            }
            let server = &stage.server;
            let gone = stage.follower.until(Duration::from_secs(20), "the pods are gone", |follower| {
                let held = follower.sync.backends();
                server.watches() == 6 && held.iter().all(|backend| !backend.vm)
            });
            gone.inspect_err(|_| {
                println!("step {step}, {} watches, {:#?}", server.watches(), stage.follower.sync.backends());
            })?;
            stage.follower.run(Duration::from_millis(100))?;
            stage.follower.settle()?;
            stage.wait_current(Duration::from_secs(20))?;
            checks += 1;
        }
    }
    println!(
        "{STEPS} changes, {faults} faults, {checks} comparisons, {} writes",
        stage.follower.tables.writes
    );
    ensure!(faults > 20 && checks == 8);
    Ok(())
}

/// What `cargo xtask test cluster` asks of a real API server, the scripted one does too.
#[test]
fn the_suite_of_real_clusters_holds_for_the_scripted_one() -> Result<()> {
    let folder = Folder::new();
    let server = ApiServer::start(&folder.0)?;
    Suite::begin(server, meaning)?.run()
}
