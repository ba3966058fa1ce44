//! A cluster with a few VMs behind the API server by script, and the commands that are said to it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_tests::agent;
use vmlb_tests::api_server::ApiServer;
use vmlb_tests::api_server::kubevirt::{NAMESPACE, launcher_of, plain_pod, pool, replica_set, vm, vmi};
use vmlb_tests::api_server::objects::node;

/// The label of group `web`.
pub const KEY: &str = "expose.vmlb.io/web";
/// The command of the title.
pub const WEB: [&str; 11] =
    ["expose", "--vm", "vm01", "--vm", "vm02", "--name", "web", "--port", "80", "--node-port", "31923"];

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub struct Cluster {
    pub server: ApiServer,
    folder: PathBuf,
}

impl Cluster {
    /// Two running VMs, a stopped one, a pool of two, a replica set of one and a plain pod, on two nodes.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("vmlb-expose-{}-{number}", std::process::id()));
        let server = ApiServer::start(&folder)?;
        server.behave(|faults| faults.makes_endpoints = true);
        server.put(node("n0", "192.0.2.1"))?;
        server.put(node("n1", "192.0.2.2"))?;
        for (number, name) in [(1, "vm01"), (2, "vm02")] {
            server.put(vm(name, None))?;
            server.put(vmi(name, None))?;
            server.put(launcher_of(name, number))?;
        }
        server.put(vm("off", None))?;
        server.put(pool("pool"))?;
        for (number, name) in [(10, "pool-0"), (11, "pool-1")] {
            server.put(vm(name, Some("pool")))?;
            server.put(vmi(name, None))?;
            server.put(launcher_of(name, number))?;
        }
        server.put(replica_set("set"))?;
        server.put(vmi("set-a", Some(("VirtualMachineInstanceReplicaSet", "set"))))?;
        server.put(launcher_of("set-a", 20))?;
        server.put(plain_pod("canary", 30))?;
        Ok(Self { server, folder })
    }

    /// Says a command in the namespace of the VMs.
    pub fn say(&self, words: &[&str]) -> Result<Said> {
        let output = Command::new(agent::binary()?)
            .args(words)
            .args(["--namespace", NAMESPACE, "--kubeconfig"])
            .arg(self.server.kubeconfig())
            .stdin(Stdio::null())
            .output()?;
        Ok(Said {
            code: output.status.code().context("the command was killed")?,
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }

    /// The same, and it must go well; what it printed.
    pub fn done(&self, words: &[&str]) -> Result<String> {
        let said = self.say(words)?;
        ensure!(said.code == 0 && said.err.is_empty(), "{words:?}: {said:?}");
        Ok(said.out)
    }

    /// The same, and it must fail with `code`; what it said.
    pub fn refused(&self, words: &[&str], code: i32) -> Result<String> {
        let said = self.say(words)?;
        ensure!(said.code == code && said.out.is_empty(), "{words:?}: {said:?}");
        Ok(said.err)
    }

    pub fn object(&self, kind: &str, name: &str) -> Result<Value> {
        self.server.object(kind, NAMESPACE, name).with_context(|| format!("no {kind} {name}"))
    }

    /// Everything that carries the label of group `web`, as in `Pod/canary`.
    pub fn labelled(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .server
            .objects()
            .iter()
            .filter(|object| {
                let places = [
                    &object["metadata"]["labels"],
                    &object["spec"]["template"]["metadata"]["labels"],
                    &object["spec"]["virtualMachineTemplate"]["spec"]["template"]["metadata"]["labels"],
                ];
                places.iter().any(|labels| labels[KEY] == "true")
            })
            .map(|object| {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                format!("{}/{name}", object["kind"].as_str().unwrap_or_default())
            })
            .collect();
        all.sort();
        all
    }

    /// Pods that are ready endpoints of Service `web`.
    pub fn endpoints(&self) -> Vec<String> {
        let slice = self.server.object("EndpointSlice", NAMESPACE, "web-slice").unwrap_or_default();
        let ready = slice["endpoints"].as_array().into_iter().flatten();
        let ready = ready.filter(|endpoint| endpoint["conditions"]["ready"] == true);
        ready.filter_map(|endpoint| endpoint["targetRef"]["name"].as_str()).map(str::to_owned).collect()
    }

    /// Everything there is but versions and endpoints: what a command that fails must leave as it was.
    pub fn everything(&self) -> Vec<Value> {
        let mut all = self.server.objects();
        all.retain(|object| object["kind"] != "EndpointSlice");
        for object in &mut all {
            object["metadata"]["resourceVersion"] = Value::Null;
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap_or_default();
    }
}
