//! Manifests with mistakes cost themselves and nothing else.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{requests, servers};

/// A file, and what a warning about it has to mention: the file, the object and the field, as far as it has them.
struct Mistake {
    file: &'static str,
    content: Vec<u8>,
    named: &'static [&'static str],
}

fn service(name: &str, ports: &str, more: &str) -> Vec<u8> {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  type: NodePort\n\
         \x20 clusterIP: 10.96.1.1\n{more}  ports:\n{ports}"
    )
    .into_bytes()
}

fn slice(name: &str, family: &str, rest: &str) -> Vec<u8> {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: default\n\
         \x20 labels: {{kubernetes.io/service-name: first}}\naddressType: {family}\n{rest}"
    )
    .into_bytes()
}

fn labelled_pod(name: &str, label: &str) -> Vec<u8> {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n  uid: 1-2-3\n\
         \x20 labels: {{kubevirt.io: virt-launcher, kubevirt.io/created-by: {label}}}\nspec: {{nodeName: node1}}\n\
         status: {{podIP: 10.244.1.200}}\n"
    )
    .into_bytes()
}

fn mistakes() -> Vec<Mistake> {
    let good_port = "  - {name: main, protocol: TCP, port: 80, targetPort: 80, nodePort: 32001}\n";
    vec![
        Mistake {
            file: "a-unknown-field.yaml",
            content: service("unknown-field", good_port, "  externalTrafikPolicy: Local\n"),
            named: &["a-unknown-field.yaml", "unknown-field", "externalTrafikPolicy"],
        },
        Mistake {
            file: "b-bad-port.yaml",
            content: service("bad-port", "  - {name: main, protocol: TCP, port: 80, nodePort: 99999}\n", ""),
            named: &["b-bad-port.yaml", "bad-port", "odePort"],
        },
        Mistake {
            file: "zz-duplicate-node-port.yaml",
            content: service(
                "zz-duplicate",
                "  - {name: main, protocol: TCP, port: 80, nodePort: 31100}\n",
                "",
            ),
            named: &["zz-duplicate", "31100"],
        },
        Mistake {
            file: "c-wrong-family.yaml",
            content: slice("wrong-family", "IPv4", "ports: []\nendpoints:\n- addresses: [\"fd00::1\"]\n"),
            named: &["c-wrong-family.yaml", "wrong-family", "fd00::1"],
        },
        Mistake {
            file: "d-long-label.yaml",
            content: labelled_pod("long-label", &"x".repeat(1 << 20)),
            named: &["d-long-label.yaml", "long-label", "labels"],
        },
        Mistake {
            file: "e-not-text.yaml",
            content: b"apiVersion: v1\nkind: Service\nmetadata: {name: \xff\xfe}\n".to_vec(),
            named: &["e-not-text.yaml"],
        },
        Mistake {
            file: "f-not-yaml.yaml",
            content: b"kind: Service\n  metadata: [broken\n".to_vec(),
            named: &["f-not-yaml.yaml"],
        },
        Mistake {
            file: "g-unknown-kind.yaml",
            content: b"apiVersion: v1\nkind: Sirvice\nmetadata: {name: typo}\n".to_vec(),
            named: &["g-unknown-kind.yaml", "Sirvice"],
        },
    ]
}

#[test]
fn bad_manifests_cost_a_warning_each_and_everything_else_is_served() {
    unless_unable("bad_manifests_cost_a_warning_each_and_everything_else_is_served", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        // An empty slice is no mistake, it only has no endpoints.
        cluster
            .manifests
            .write("h-empty-slice.yaml", &slice("empty", "IPv4", "ports: []\nendpoints: []\n"))?;
        let mistakes = mistakes();
        // One half is there from the start, the other comes later.
        let (early, late) = mistakes.split_at(mistakes.len() / 2);
        for mistake in early {
            cluster.manifests.write(mistake.file, &mistake.content)?;
        }
        cluster.start_agents(&Flags::default())?;
        for mistake in late {
            cluster.manifests.write(mistake.file, &mistake.content)?;
        }
        for mistake in &mistakes {
            wait_for_warning(&cluster, mistake)?;
        }
        for family in Family::ALL {
            for (service, pod) in [("first", "vm01"), ("second", "vm02")] {
                let frontend = cluster.frontend(service, servers::HTTP, 0, family)?;
                let answer = cluster.client().run(|| requests::http(frontend, "/"))?;
                ensure!(answer.pod() == pod, "{family}: {service} answered from {}", answer.pod());
            }
        }
        Ok(())
    });
}

/// Waits for a line in the first node's log that names everything the mistake has to be told by.
fn wait_for_warning(cluster: &Cluster, mistake: &Mistake) -> Result<()> {
    let start = Instant::now();
    loop {
        let log = cluster.agents[0].as_ref().map(|agent| agent.log()).unwrap_or_default();
        if log.lines().any(|line| mistake.named.iter().all(|word| line.contains(word))) {
            return Ok(());
        }
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "no line of the log names {:?}; lines about the file: {:#?}",
            mistake.named,
            log.lines().filter(|line| line.contains(mistake.named[0])).take(5).collect::<Vec<_>>()
        );
        thread::sleep(Duration::from_millis(50));
    }
}
