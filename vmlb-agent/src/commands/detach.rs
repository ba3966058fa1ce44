//! `vmlb detach`: leaves the node as it was found.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use futures_util::stream::TryStreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rtnetlink::Handle;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle};
use tokio::signal::unix::{SignalKind, signal};
use vmlb_common::abi::names;

use super::drain;
use crate::interface::watch::Netlink;
use crate::loader::attach::{clsact, links};
use crate::loader::{map_names, resize};
use crate::neighbours::Neighbours;
use crate::pins::{self, DEFAULT_ROOT, Hook, Lock, PinRoot};
use crate::settings;
use crate::tables::pinned;

/// Options of `vmlb detach`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  vmlb detach
  vmlb detach --drain 5m --force
  vmlb detach --pin-root /sys/fs/bpf/test --force

Cuts the connections that vmlb carries, but for those that --drain lets end. A second run finds nothing and is fine; one
after a --drain that was interrupted goes on with it.")]
pub struct Options {
    /// Folder of pins, as given to the agent
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub pin_root: PathBuf,
    /// Stop a running agent first (SIGTERM). One that is kept running by a DaemonSet or systemd comes back: stop it there
    #[arg(long)]
    pub force: bool,
    /// Let connections end by themselves for so long at most; new ones go to the node's stack meanwhile (ms, s, m, h)
    #[arg(long, value_name = "TIME", value_parser = settings::duration)]
    pub drain: Option<Duration>,
    /// Stay until SIGTERM when all is down: in the place of the agent of a DaemonSet, which starts again what ends
    #[arg(long)]
    pub stay: bool,
}

/// Runs the command.
///
/// # Errors
/// When an agent runs and `--force` is not given, or something cannot be removed; what can is.
pub fn run(options: &Options) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("taking vmlb down needs root (CAP_BPF, CAP_NET_ADMIN and access to the BPF file system)");
    }
    let root = PinRoot::new(&options.pin_root);
    let lock = take_lock(&root, options)?;
    if let Some(patience) = options.drain {
        drain::close_frontends(&root)?;
        match drain::wait(&root, patience)? {
            0 => tracing::info!("drained: every flow has ended"),
            left => tracing::warn!("{left} flows have not ended in {} s and are cut", patience.as_secs()),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(take_down(&root))?;
    drop(lock);
    if options.stay {
        runtime.block_on(stay())?;
    }
    Ok(())
}

async fn stay() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn take_lock(root: &PinRoot, options: &Options) -> anyhow::Result<Lock> {
    if let Some(pid) = root.running_agent() {
        if !options.force {
            bail!("the agent is running (process {pid}); stop it first, or say --force");
        }
        tracing::info!("stopping the agent, process {pid}");
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)
            .with_context(|| format!("cannot stop process {pid}"))?;
        let patience = Instant::now() + Duration::from_secs(10);
        while root.running_agent().is_some() {
            if Instant::now() > patience {
                bail!("the agent (process {pid}) does not stop");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    root.lock()
}

/// Frontends first: from then on no packet is the start of anything. Programs next, those that translate to backends before
/// those that translate back. Then nothing uses the maps any more.
async fn take_down(root: &PinRoot) -> anyhow::Result<()> {
    let mut trouble = Vec::new();
    let mut note = |done: anyhow::Result<()>| {
        if let Err(error) = done {
            tracing::warn!("{error:#}");
            trouble.push(format!("{error:#}"));
        }
    };
    note(drain::close_frontends(root));
    let netlink = Netlink::connect()?;
    let (unlinked, link_trouble) = unlink(root)?;
    link_trouble.into_iter().for_each(|error| note(Err(error)));
    note(remove_filters(root, &netlink).await);
    note(release_neighbours(root, &netlink).await);
    note(remove_folder(&root.programs()));
    note(remove_folder(&root.links()));
    note(resize::remove_leftovers(root));
    let mut maps = 0;
    for name in map_names() {
        match pins::remove(&root.map(name)) {
            Ok(removed) => maps += usize::from(removed),
            Err(error) => note(Err(error)),
        }
    }
    if root.exists() {
        note(fs::remove_dir(root.path()).with_context(|| format!("cannot remove {}", root.path().display())));
    }
    if root.runtime().exists() {
        note(
            fs::remove_dir_all(root.runtime())
                .with_context(|| format!("cannot remove {}", root.runtime().display())),
        );
    }
    pins::forget_runtime_folder();
    if trouble.is_empty() {
        tracing::info!("taken down: {unlinked} links, {maps} maps under {}", root.path().display());
        return Ok(());
    }
    bail!("not everything could be taken down: {}", trouble.join("; "))
}

/// Removes the pinned links; how many there were, and what failed.
fn unlink(root: &PinRoot) -> anyhow::Result<(usize, Vec<anyhow::Error>)> {
    let mut links = links(root)?;
    let order = |hook: Hook| Hook::ALL.iter().position(|one| *one == hook);
    links.sort_by_key(|link| link.named.as_ref().and_then(|(_, hook)| order(*hook)));
    let mut failed = Vec::new();
    for link in &links {
        failed.extend(pins::remove(&link.path).err());
    }
    Ok((links.len(), failed))
}

/// Removes our filters from every device, and the clsact qdiscs that vmlb added and nobody else uses.
async fn remove_filters(root: &PinRoot, netlink: &Netlink) -> anyhow::Result<()> {
    let added = clsact::added(root);
    for link in netlink.dump().await?.links() {
        for hook in Hook::ALL {
            clsact::remove(&link.name, hook)?;
        }
        if added.contains(&link.name) && is_unused(netlink.handle(), link.ifindex).await? {
            remove_qdisc(netlink.handle(), link.ifindex)
                .await
                .with_context(|| format!("cannot remove the clsact qdisc of {}", link.name))?;
        }
    }
    Ok(())
}

async fn is_unused(handle: &Handle, ifindex: u32) -> anyhow::Result<bool> {
    let index = i32::try_from(ifindex)?;
    let ingress = handle.traffic_filter(index).get().ingress().execute().try_next().await?;
    let egress = handle.traffic_filter(index).get().egress().execute().try_next().await?;
    Ok(ingress.is_none() && egress.is_none())
}

async fn remove_qdisc(handle: &Handle, ifindex: u32) -> anyhow::Result<()> {
    let index = i32::try_from(ifindex)?;
    let mut qdiscs = handle.qdisc().get().index(index).ingress().execute();
    let mut found = None;
    while let Some(qdisc) = qdiscs.try_next().await? {
        let is_clsact =
            qdisc.attributes.iter().any(|one| matches!(one, TcAttribute::Kind(kind) if kind == "clsact"));
        if is_clsact && qdisc.header.index == index {
            found = Some(qdisc);
        }
    }
    if found.is_some() {
        let mut request = handle.qdisc().del(index);
        request.message_mut().header.parent = TcHandle::CLSACT;
        request.execute().await?;
    }
    Ok(())
}

async fn release_neighbours(root: &PinRoot, netlink: &Netlink) -> anyhow::Result<()> {
    if !root.map(names::NEIGHBOURS).exists() {
        return Ok(());
    }
    let map = match pinned::neighbours(root) {
        Ok(map) => map,
        Err(error) => {
            tracing::info!("{error:#}");
            return Ok(());
        }
    };
    let released = Neighbours::adopt(netlink.handle().clone(), map)?.release_all().await?;
    tracing::info!("released {released} neighbours");
    Ok(())
}

fn remove_folder(folder: &std::path::Path) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        pins::remove(&entry?.path())?;
    }
    fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))
}
