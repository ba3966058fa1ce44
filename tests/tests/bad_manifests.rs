//! Manifests with mistakes cost themselves and nothing else.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::probe::wait;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{requests, servers};

/// A file, and what the line about it has to say.
struct Mistake {
    file: &'static str,
    content: Vec<u8>,
    /// Kind, namespace and name; empty: what is wrong cannot be read so far.
    object: &'static str,
    /// The field; empty: none can be told apart.
    field: &'static str,
    /// What is wrong.
    fault: &'static str,
    /// What to do about it.
    remedy: &'static str,
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
            object: "Service default/unknown-field",
            field: "spec.externalTrafikPolicy",
            fault: "is not a field of this kind",
            remedy: "check its spelling and its place",
        },
        Mistake {
            file: "b-bad-port.yaml",
            content: service("bad-port", "  - {name: main, protocol: TCP, port: 80, nodePort: 99999}\n", ""),
            object: "Service default/bad-port",
            field: "spec.ports[0].nodePort",
            fault: "99999 is not a port",
            remedy: "use 1 to 65535",
        },
        Mistake {
            file: "zz-duplicate-node-port.yaml",
            content: service(
                "zz-duplicate",
                "  - {name: main, protocol: TCP, port: 80, nodePort: 31100}\n",
                "",
            ),
            object: "Service default/zz-duplicate",
            field: "spec.ports",
            fault: "port 31100",
            remedy: "give one of them another node port or address",
        },
        Mistake {
            file: "c-wrong-family.yaml",
            content: slice("wrong-family", "IPv4", "ports: []\nendpoints:\n- addresses: [\"fd00::1\"]\n"),
            object: "EndpointSlice default/wrong-family",
            field: "endpoints[0].addresses[0]",
            fault: "fd00::1 is not of the slice's addressType",
            remedy: "move it to a slice of its own family",
        },
        Mistake {
            file: "d-long-label.yaml",
            content: labelled_pod("long-label", &"x".repeat(1 << 20)),
            object: "Pod default/long-label",
            field: "metadata.labels[kubevirt.io/created-by]",
            fault: "the value has 1048576 octets",
            remedy: "Kubernetes allows 63; shorten it or use an annotation",
        },
        Mistake {
            file: "e-not-text.yaml",
            content: b"apiVersion: v1\nkind: Service\nmetadata: {name: \xff\xfe}\n".to_vec(),
            object: "",
            field: "",
            fault: "is not UTF-8 from octet 46 on",
            remedy: "save it as UTF-8",
        },
        Mistake {
            file: "f-not-yaml.yaml",
            content: b"kind: Service\n  metadata: [broken\n".to_vec(),
            object: "",
            field: "",
            fault: "the document that begins on line 1 is not valid YAML",
            remedy: "correct it; the rest of the file is used",
        },
        Mistake {
            file: "g-unknown-kind.yaml",
            content: b"apiVersion: v1\nkind: Sirvice\nmetadata: {name: typo}\n".to_vec(),
            object: "Sirvice",
            field: "kind",
            fault: "is not a kind that vmlb reads",
            remedy: "move it out of the directory",
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

/// Waits for a line in the first node's log that tells file, object, field, fault and remedy, in this order, and finds the
/// same in `vmlb status`.
fn wait_for_warning(cluster: &Cluster, mistake: &Mistake) -> Result<()> {
    let &Mistake { file, object, field, fault, remedy, .. } = mistake;
    let place: Vec<&str> = [file, object, field].into_iter().filter(|part| !part.is_empty()).collect();
    let place = format!("{}: ", place.join(": "));
    let start = Instant::now();
    loop {
        let log = cluster.agents[0].as_ref().map(|agent| agent.log()).unwrap_or_default();
        let is_told = log.lines().any(|line| {
            let rest = line.split_once(&*place).and_then(|(_, rest)| rest.strip_suffix(remedy));
            rest.is_some_and(|rest| rest.contains(fault))
        });
        if is_told {
            break;
        }
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "no line of the log says {place:?}, {fault:?}, {remedy:?}; lines about the file: {:#?}",
            log.lines().filter(|line| line.contains(file)).take(5).collect::<Vec<_>>()
        );
        thread::sleep(Duration::from_millis(50));
    }
    wait("the status shows it", Duration::from_secs(5), || {
        let status = agent::json(&cluster.topology.nodes[0], &["status"])?;
        let mut warnings = status["warnings"].as_array().into_iter().flatten();
        Ok(warnings.any(|warning| {
            warning["source"].as_str().is_some_and(|source| source.ends_with(file))
                && warning["object"] == object
                && warning["field"] == field
                && warning["message"].as_str().is_some_and(|message| message.contains(fault))
                && warning["remedy"] == remedy
        }))
    })
}
