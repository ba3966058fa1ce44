//! The agent's log: as JSON, at another level while it runs, and without saying the same for ever.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_tests::agent::{self, Agent, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace;
use vmlb_tests::probe::wait;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

const SOON: Duration = Duration::from_secs(10);

fn first(cluster: &Cluster) -> Result<&Agent> {
    cluster.agents[0].as_ref().context("an agent")
}

/// Every line as an object.
fn lines(agent: &Agent) -> Result<Vec<Value>> {
    let said = agent.said();
    said.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{line:?} is not JSON")))
        .collect()
}

#[test]
fn lines_are_json_where_asked_and_a_repeated_one_is_said_a_few_times() {
    unless_unable("lines_are_json_where_asked_and_a_repeated_one_is_said_a_few_times", || {
        let flags = Flags::with(&["--log-format", "json", "--log-repeats", "3"]);
        let cluster = Cluster::serving(Attachment::Routed, &flags)?;
        let service = |node_port: u32| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: odd, namespace: default}}\nspec:\n  type: NodePort\n\
                 \x20 ports: [{{name: http, protocol: TCP, port: 80, nodePort: {node_port}}}]\n"
            )
        };
        let count = |part: &str| -> Result<usize> {
            let all = lines(first(&cluster)?)?;
            let message = |line: &Value| line["message"].as_str().unwrap_or_default().to_owned();
            Ok(all.iter().filter(|line| message(line).contains(part)).count())
        };
        // Wrong and right by turns: the same warning appears anew each time.
        for turn in 0..6 {
            let (wrong, right) = (service(99_999), service(31_700 + turn));
            cluster.manifests.write("service-odd.yaml", wrong.as_bytes())?;
            wait("the warning is known", SOON, || {
                Ok(agent::json(&cluster.topology.nodes[0], &["status"])?["warnings"]
                    .to_string()
                    .contains("99999"))
            })?;
            cluster.manifests.write("service-odd.yaml", right.as_bytes())?;
            wait("the warning is gone", SOON, || {
                Ok(!agent::json(&cluster.topology.nodes[0], &["status"])?["warnings"]
                    .to_string()
                    .contains("99999"))
            })?;
        }
        ensure!(count("99999")? == 3, "{}", first(&cluster)?.said());
        for line in lines(first(&cluster)?)? {
            for field in ["timestamp", "level", "message", "target"] {
                ensure!(line[field].is_string(), "{line} has no {field}");
            }
        }
        Ok(())
    });
}

#[test]
fn the_level_is_changed_while_the_agent_runs() {
    unless_unable("the_level_is_changed_while_the_agent_runs", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let node = &cluster.topology.nodes[0];
        let say =
            |level: &str| agent::command(node, &["log-level", level])?.output().context("vmlb log-level");
        ensure!(!first(&cluster)?.said().contains("DEBUG"));
        ensure!(!say("loud")?.status.success(), "that is no level");
        ensure!(say("debug")?.status.success());
        let touch = |turn: u32| -> Result<()> {
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: more, namespace: default}}\nspec:\n  type: NodePort\n\
                 \x20 ports: [{{name: http, protocol: TCP, port: 80, nodePort: {}}}]\n",
                31_700 + turn
            );
            cluster.manifests.write("service-more.yaml", text.as_bytes())
        };
        wait("debug is on", SOON, || Ok(first(&cluster)?.said().contains("from now on the log has debug")))?;
        ensure!(say("error")?.status.success());
        wait("only errors are on", SOON, || {
            touch(0)?;
            Ok(namespace::run(&mut agent::command(node, &["services"])?)?.contains("31700"))
        })?;
        // The change of level is told at the new level, and so is not seen.
        std::thread::sleep(Duration::from_millis(1500));
        let before = first(&cluster)?.said();
        touch(1)?;
        wait("the change is served", SOON, || {
            Ok(namespace::run(&mut agent::command(node, &["services"])?)?.contains("31701"))
        })?;
        ensure!(first(&cluster)?.said() == before, "{}", first(&cluster)?.said());
        Ok(())
    });
}
