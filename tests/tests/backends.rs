//! Backends that come and go while clients ask.

use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::pod::Workload;
use vmlb_tests::requests::Conversation;
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{load, servers};

#[test]
fn backends_added_and_removed_under_load_cost_no_request_and_no_connection() {
    unless_unable("backends_added_and_removed_under_load_cost_no_request_and_no_connection", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let client = vmlb_tests::namespace::Namespace::open(cluster.client().name())?;
        for family in Family::ALL {
            let frontend = cluster.frontend("both", servers::HTTP, 0, family)?;
            let lines = cluster.frontend("second", servers::LINES, 0, family)?;
            let mut conversation = client.run(|| Conversation::open(lines))?;
            conversation.ask("before")?;
            let ((), report) = load::during(&client, frontend, 4, || {
                thread::sleep(Duration::from_millis(300));
                let both = Service::all_servers("both", 31000);
                cluster.publish(both.clone(), &["vm01"])?;
                cluster.wait_until_serving()?;
                thread::sleep(Duration::from_millis(300));
                let third = format!("vm03-{}", family.to_string().to_lowercase());
                cluster.add_pod(1, &third, Workload::Vm)?;
                cluster.publish(both, &["vm01", "vm02", &third])?;
                cluster.wait_until_serving()?;
                thread::sleep(Duration::from_millis(300));
                // A VM that left every Service but is still there keeps its connections.
                cluster.publish(Service::all_servers("second", 31200), &[])?;
                cluster.wait_until_serving()?;
                let kept =
                    conversation.ask("after").context("a connection to a VM that takes no new ones")?;
                ensure!(kept == "vm02");
                cluster.publish(Service::all_servers("second", 31200), &["vm02"])?;
                cluster.wait_until_serving()
            })?;
            let failures = &report.failures;
            ensure!(
                failures.is_empty(),
                "{family}: {} requests failed, e.g. {}",
                failures.len(),
                failures[0]
            );
            ensure!(report.answers.len() == 3, "{family}: answers came from {:?}", report.answers);
            cluster.publish(Service::all_servers("both", 31000), &["vm01", "vm02"])?;
            cluster.wait_until_serving()?;
        }
        Ok(())
    });
}

#[test]
fn a_removed_backend_gets_no_new_connection_once_the_change_is_in() {
    unless_unable("a_removed_backend_gets_no_new_connection_once_the_change_is_in", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        cluster.publish(Service::all_servers("both", 31000), &["vm02"])?;
        cluster.wait_until_serving()?;
        for family in Family::ALL {
            for node in 0..2 {
                let frontend = cluster.frontend("both", servers::HTTP, node, family)?;
                let ((), report) = load::during(cluster.client(), frontend, 2, || {
                    thread::sleep(Duration::from_millis(200));
                    Ok(())
                })?;
                ensure!(report.failures.is_empty(), "{:?}", report.failures);
                ensure!(report.answers.keys().eq(["vm02"]), "answers came from {:?}", report.answers);
            }
        }
        Ok(())
    });
}
