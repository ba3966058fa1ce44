//! `vmlb expose`: puts VMs and pods behind one Service. Needs a kubeconfig and nothing of this machine, so that it runs on
//! a laptop; `kubectl vmlb expose` is the same.

use std::io::Write;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::api::{Cluster, ClusterFlags, Refused, Resource, Scope, block_on};
use crate::settings;

pub(super) mod member;
mod reach;
pub(super) mod service;
pub(super) mod steps;

use member::{Finder, Found, Members, PoolTemplate};
use service::{Policy, Port, Type, Wanted, group_label, holder};
use steps::{Step, Steps};

/// Whether anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Everything is.
    None,
    /// Nothing is; the API server is only asked what there is.
    Client,
    /// Nothing is; the API server checks what would be.
    Server,
}

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// The Service as YAML.
    Yaml,
    /// The Service as JSON.
    Json,
    /// The Service's name.
    Name,
}

/// Options of `vmlb expose`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  vmlb expose --vm fenar-centos-vm01 --vm fenar-centos-vm02 --name web --port 80 --node-port 31923
  vmlb expose --pool web --pod canary --name web --port 80:8080 --port 53/UDP --type LoadBalancer
  vmlb expose --vm db --name db --port 5432 --dry-run server --output yaml
  kubectl vmlb expose --vm db --name db --port 5432        with a link to vmlb named kubectl-vmlb on the PATH

The group is all that carries the label expose.vmlb.io/NAME. It is given to templates of VMs, to running VMIs and to
their pods, so that nothing has to be restarted. The same command again changes nothing; with other members it adds
them, with other ports it changes the Service. `vmlb unexpose` takes back what this command did.

Exit codes: 0 done; 1 failed, and nothing is changed unless it says so; 2 wrong usage; 4 not permitted.")]
pub struct Options {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub cluster: ClusterFlags,
    /// Name of the Service
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Port of the Service, and of the VMs where that is another; may be given several times
    #[arg(long, value_name = "PORT[:TARGET][/PROTOCOL]", required = true)]
    pub port: Vec<Port>,
    /// Port of the VMs, for a single --port
    #[arg(long, value_name = "PORT")]
    pub target_port: Option<String>,
    /// Port at the nodes, one for each --port in their order. Without it: one that is free
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub node_port: Vec<u16>,
    /// How clients reach it
    #[arg(long, value_enum, default_value_t = Type::NodePort)]
    pub r#type: Type,
    /// Local: nodes serve their own VMs only, and the client's address is always kept
    #[arg(long, value_enum)]
    pub external_traffic_policy: Option<Policy>,
    /// Label the templates of pools too. Pools restart their VMs when their template changes
    #[arg(long)]
    pub pool_template: bool,
    /// How long to wait until the members are endpoints of the Service (ms, s, m); 0s: not at all
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = settings::duration)]
    pub wait: Duration,
    /// Write nothing; `server`: but have the API server check it
    #[arg(long, value_enum, default_value_t = DryRun::None)]
    pub dry_run: DryRun,
    /// Print the Service in this form instead of what is done
    #[arg(long, short, value_enum)]
    pub output: Option<Form>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub members: Members,
}

/// Runs the command.
///
/// # Errors
/// When the group cannot be made; then nothing is changed, or the error says what is.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(
        options.members.named().next().is_some(),
        "name at least one --vm, --vmi, --pool, --replica-set or --pod"
    );
    ensure!(
        is_label(&options.name),
        "{:?} is no name for a Service: lower-case letters, digits and -, at most 63",
        options.name
    );
    let ports = Wanted::ports(&options.port, options.target_port.as_deref(), &options.node_port)?;
    block_on(async {
        let cluster = Cluster::open(&options.cluster).await?;
        let wanted = Wanted {
            name: options.name.clone(),
            namespace: cluster.namespace.clone(),
            kind: options.r#type,
            policy: options.external_traffic_policy,
            ports,
        };
        Exposure { cluster, wanted, options, key: group_label(&options.name) }.run().await
    })
}

/// RFC 1035, as for Services before Kubernetes 1.34, and what a label's name may be.
fn is_label(name: &str) -> bool {
    let inner = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    name.len() <= 63
        && name.bytes().all(inner)
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-')
}

struct Exposure<'a> {
    cluster: Cluster,
    wanted: Wanted,
    options: &'a Options,
    key: String,
}

impl Exposure<'_> {
    async fn run(&self) -> anyhow::Result<()> {
        let pool_template =
            if self.options.pool_template { PoolTemplate::Labelled } else { PoolTemplate::Kept };
        let finder = Finder { cluster: &self.cluster, key: &self.key, pool_template };
        let found = finder.find(&self.options.members).await?;
        ensure!(found.problems.is_empty(), "nothing was changed: {}", found.problems.join("; "));
        let present = self.cluster.get(Resource::SERVICE, &self.wanted.name).await?;
        let steps = self.steps(&found, present.as_ref())?;
        let planned = || Some(self.wanted.object(present.as_ref()));
        let service = match self.options.dry_run {
            DryRun::Client => planned(),
            DryRun::Server => self.rehearse(&steps).await?.or_else(|| present.clone()),
            DryRun::None => {
                self.rehearse(&steps).await?;
                steps.carry_out().await?.or_else(|| present.clone())
            }
        };
        let service = service.unwrap_or_default();
        match self.options.output {
            Some(form) => print(&service, form)?,
            None => self.report(&found, &steps)?,
        }
        if self.options.dry_run != DryRun::None {
            return Ok(());
        }
        self.wait(&found).await?;
        if self.options.output.is_none() {
            let mut out = std::io::stdout().lock();
            for line in reach::lines(&self.cluster, &service).await? {
                writeln!(out, "reach it at {line}")?;
            }
        }
        Ok(())
    }

    fn steps(&self, found: &Found, present: Option<&Value>) -> anyhow::Result<Steps<'_>> {
        let new =
            found.bearers().into_iter().filter(|bearer| bearer.value.as_deref() != Some(service::MEMBER));
        let mut list: Vec<Step> = new.map(Step::Label).collect();
        // Last, so that clients meet the whole group.
        match present {
            None => list.push(Step::Create(self.wanted.object(None))),
            Some(present) => {
                if let Some(patch) = self.wanted.difference(present)? {
                    let back = serde_json::json!({"spec": {
                        "type": present["spec"]["type"], "selector": present["spec"]["selector"],
                        "ports": present["spec"]["ports"],
                        "externalTrafficPolicy": present["spec"]["externalTrafficPolicy"],
                    }});
                    list.push(Step::Change { name: self.wanted.name.clone(), patch, back });
                }
            }
        }
        Ok(Steps { cluster: &self.cluster, key: &self.key, list })
    }

    async fn rehearse(&self, steps: &Steps<'_>) -> anyhow::Result<Option<Value>> {
        steps.rehearse(async |refused| self.explain(refused).await).await
    }

    /// A refusal in words that say what to do. Who has a node port is looked up.
    async fn explain(&self, refused: &Refused) -> String {
        let is_taken = refused.message.contains("provided port is already allocated");
        if !is_taken {
            return refused.to_string();
        }
        let services = self.cluster.list(Resource::SERVICE, Scope::All, "").await.ok().flatten();
        let services = services.unwrap_or_default();
        let taken = self.wanted.ports.iter().filter_map(|(_, node_port)| {
            let node_port = (*node_port)?;
            Some((node_port, holder(&services, node_port)?))
        });
        let taken: Vec<String> =
            taken.map(|(port, holder)| format!("node port {port} is taken by Service {holder}")).collect();
        let what = if taken.is_empty() { refused.message.clone() } else { taken.join(", ") };
        format!("{what}; choose another --node-port, or leave it out to get one that is free")
    }

    fn report(&self, found: &Found, steps: &Steps<'_>) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let mode = match self.options.dry_run {
            DryRun::None => "",
            DryRun::Client => " (dry run)",
            DryRun::Server => " (server dry run)",
        };
        for step in &steps.list {
            writeln!(out, "{step}{mode}")?;
        }
        if steps.list.is_empty() {
            writeln!(out, "service/{} unchanged{mode}", self.wanted.name)?;
        }
        for member in &found.members {
            if let Some(note) = &member.note {
                writeln!(out, "{}: {note}", member.name)?;
            }
        }
        Ok(())
    }

    async fn wait(&self, found: &Found) -> anyhow::Result<()> {
        let pods = found.pods();
        if self.options.wait.is_zero() || pods.is_empty() {
            return Ok(());
        }
        let missing = reach::wait(&self.cluster, &self.wanted.name, &pods, self.options.wait).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<String> = missing.iter().map(|(pod, why)| format!("pod/{pod}: {why}")).collect();
        bail!(
            "Service and labels are made, but after {} s these are no endpoints: {}; kubectl describe shows why; the same \
             command waits again",
            self.options.wait.as_secs(),
            missing.join(", ")
        )
    }
}

/// Prints an object for programs.
pub(super) fn print(object: &Value, form: Form) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match form {
        Form::Json => writeln!(out, "{object:#}")?,
        Form::Yaml => write!(out, "{}", serde_saphyr::to_string(object)?)?,
        Form::Name => writeln!(out, "service/{}", object["metadata"]["name"].as_str().unwrap_or_default())?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_the_name_of_a_service() {
        for name in ["web", "a-1", &"a".repeat(63)] {
            assert!(is_label(name), "{name}");
        }
        for name in ["", "Web", "1a", "a-", "a.b", &"a".repeat(64)] {
            assert!(!is_label(name), "{name}");
        }
    }
}
