//! `vmlb unexpose`: takes back what `vmlb expose` did, for a whole group or some of its members.

use std::io::Write;

use anyhow::ensure;
use clap::Args;

use super::api::{Cluster, ClusterFlags, Resource, block_on, word};
use super::expose::DryRun;
use super::expose::member::{Bearer, Finder, Members, PoolTemplate};
use super::expose::service::{group_label, is_ours};
use super::expose::steps::{Step, Steps};

/// Options of `vmlb unexpose`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  vmlb unexpose --name web                              the Service and every label of the group
  vmlb unexpose --name web --vm fenar-centos-vm02       this VM leaves the group, the Service stays

A Service of that name that vmlb expose did not make is left alone. A second run finds nothing and is fine; after an
error it goes on with what is left.

Exit codes: 0 done; 1 failed; 2 wrong usage; 4 not permitted.")]
pub struct Options {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub cluster: ClusterFlags,
    /// Name of the Service
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Write nothing; `server`: but have the API server check it
    #[arg(long, value_enum, default_value_t = DryRun::None)]
    pub dry_run: DryRun,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub members: Members,
}

/// Runs the command.
///
/// # Errors
/// When something cannot be taken back; what can is.
pub fn run(options: &Options) -> anyhow::Result<()> {
    block_on(async {
        let cluster = Cluster::open(&options.cluster).await?;
        let key = group_label(&options.name);
        let steps = Steps { cluster: &cluster, key: &key, list: steps(&cluster, &key, options).await? };
        if options.dry_run != DryRun::Client {
            steps.rehearse(async |refused| refused.to_string()).await?;
        }
        if options.dry_run == DryRun::None {
            steps.carry_out_what_can_be().await?;
        }
        report(options, &steps)
    })
}

/// The Service first: from then on nobody is sent to the group.
async fn steps(cluster: &Cluster, key: &str, options: &Options) -> anyhow::Result<Vec<Step>> {
    // A pool's template that was labelled is unlabelled with it, which restarts its VMs; asked for, it is done.
    let finder = Finder { cluster, key, pool_template: PoolTemplate::Labelled };
    if options.members.named().next().is_some() {
        let found = finder.find(&options.members).await?;
        ensure!(found.problems.is_empty(), "nothing was changed: {}", found.problems.join("; "));
        return Ok(unlabel(found.bearers()).collect());
    }
    let mut list = Vec::new();
    if let Some(service) = cluster.get(Resource::SERVICE, &options.name).await? {
        ensure!(
            is_ours(&service),
            "nothing was changed: Service {}/{} was not made by vmlb expose; kubectl delete service {} takes it away",
            cluster.namespace,
            options.name,
            options.name
        );
        let uid = word(&service, &["metadata", "uid"]).to_owned();
        list.push(Step::Delete { name: options.name.clone(), uid });
    }
    list.extend(unlabel(finder.all().await?));
    Ok(list)
}

fn unlabel(bearers: Vec<Bearer>) -> impl Iterator<Item = Step> {
    bearers.into_iter().filter(|bearer| bearer.value.is_some()).map(Step::Unlabel)
}

fn report(options: &Options, steps: &Steps<'_>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let mode = if options.dry_run == DryRun::None { "" } else { " (dry run)" };
    for step in &steps.list {
        writeln!(out, "{step}{mode}")?;
    }
    if steps.list.is_empty() {
        writeln!(out, "nothing of group {} is there", options.name)?;
    }
    Ok(())
}
