//! The image under podman, run as a manifest says: what the kubelet would make of a container of a DaemonSet.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::namespace;
use crate::topology::Node;

/// Why images cannot be run on this machine, if they cannot.
pub fn reason() -> Option<String> {
    for program in ["podman", "buildah", "runc"] {
        if Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            return Some(format!("the program `{program}` is not installed"));
        }
    }
    crate::deploy::without_cargo()
}

/// podman with the runtime that knows both generations of cgroups.
pub fn podman() -> Command {
    let mut command = Command::new("podman");
    command.args(["--runtime", "runc"]).stdin(Stdio::null());
    command
}

/// An image built by `cargo xtask image`, removed when dropped.
pub struct Image(pub String);

impl Image {
    /// Builds one without optimisation; what runs in the kernel is the same.
    pub fn build() -> Result<Self> {
        let tag = format!("localhost/vmlb-test:{}", std::process::id());
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let workspace =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("tests/ is in the workspace")?;
        let mut command = Command::new(cargo);
        command.current_dir(workspace).args(["xtask", "image", "--dev", "--tag", &tag]);
        namespace::run(&mut command)?;
        Ok(Self(tag))
    }

    /// Every file in it.
    pub fn files(&self) -> Result<Vec<String>> {
        let root = namespace::run(podman().args(["image", "mount", &self.0]))?;
        let found =
            namespace::run(Command::new("find").args([root.trim(), "-mindepth", "1", "-printf", "%P\n"]));
        namespace::run(podman().args(["image", "unmount", &self.0]))?;
        Ok(found?.lines().map(str::to_owned).collect())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _gone = podman().args(["rmi", "--force", &self.0]).stdout(Stdio::null()).status();
        fs::remove_file(profile_file()).unwrap_or_default();
    }
}

/// A container that runs in the foreground of a child process; dropping it kills it.
pub struct Container {
    name: String,
    child: Child,
}

impl Container {
    /// Runs `container` of a pod template on `node`, with more arguments than the manifest's; its log goes into `log`.
    pub fn start(
        image: &Image,
        container: &Value,
        node: &Node,
        more: &[&str],
        volumes: &[(&Path, &str)],
        log: &Path,
    ) -> Result<Self> {
        let name = format!("{}-{}", node.name, container["name"].as_str().unwrap_or_default());
        let output = File::create(log)?;
        let mut command = podman();
        command.args(["run", "--rm", "--name", &name, "--env", &format!("NODE_NAME={}", node.name)]);
        command.arg("--network").arg(format!("ns:{}", node.namespace.path().display()));
        // Where this process may not raise limits, podman's defaults cannot be set.
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]);
        command.args(security(&container["securityContext"])?).args(mounts(container)?);
        for (path, target) in volumes {
            command.arg("--volume").arg(format!("{}:{target}:ro", path.display()));
        }
        command.arg(&image.0).args(words(&container["args"])).args(more);
        let child = command.stdout(output.try_clone()?).stderr(output).spawn().context("starting podman")?;
        Ok(Self { name, child })
    }

    /// Stops it as the kubelet would, and waits.
    pub fn stop(mut self) -> Result<()> {
        namespace::run(podman().args(["stop", "--time", "10", &self.name]))?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }

    /// Waits for its end, which must be a success.
    pub fn end(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _gone =
                podman().args(["kill", &self.name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            let _reaped = self.child.wait();
        }
    }
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A securityContext as podman's flags. A field that is not known here is an error: it would not be tested.
fn security(context: &Value) -> Result<Vec<String>> {
    let mut flags = Vec::new();
    for (field, value) in context.as_object().context("a securityContext")? {
        match (field.as_str(), value) {
            ("privileged", Value::Bool(true)) => flags.push("--privileged".into()),
            ("allowPrivilegeEscalation", Value::Bool(false)) => {
                flags.push("--security-opt=no-new-privileges".into())
            }
            ("readOnlyRootFilesystem", Value::Bool(true)) => {
                flags.extend(["--read-only".into(), "--read-only-tmpfs=false".into()]);
            }
            ("runAsUser", user) => flags.push(format!("--user={user}")),
            ("capabilities", capabilities) => {
                flags.extend(words(&capabilities["drop"]).iter().map(|one| format!("--cap-drop={one}")));
                flags.extend(words(&capabilities["add"]).iter().map(|one| format!("--cap-add={one}")));
            }
            ("seccompProfile", profile) if profile["type"] == "RuntimeDefault" => {
                flags.push(format!("--security-opt=seccomp={}", profile_with_bpf()?.display()));
            }
            (field, value) => bail!("{field}: {value} is not known here"),
        }
    }
    Ok(flags)
}

/// The default profile as containerd has it. That of podman and CRI-O allows bpf(2) with CAP_SYS_ADMIN only, and refuses it
/// with CAP_BPF.
fn profile_with_bpf() -> Result<PathBuf> {
    const DEFAULT: &str = "/usr/share/containers/seccomp.json";
    let text = fs::read_to_string(DEFAULT).with_context(|| format!("reading {DEFAULT}"))?;
    let mut profile: Value = serde_json::from_str(&text)?;
    let rules = profile["syscalls"].as_array_mut().context("syscalls")?;
    // Refusals that name what is allowed below would win.
    for rule in rules.iter_mut().filter(|rule| rule["action"] == "SCMP_ACT_ERRNO") {
        if let Some(names) = rule["names"].as_array_mut() {
            names.retain(|name| name != "bpf" && name != "perf_event_open");
        }
    }
    for (name, capability) in [("bpf", "CAP_BPF"), ("perf_event_open", "CAP_PERFMON")] {
        rules.push(json!({
            "names": [name], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {"caps": [capability]}, "excludes": {},
        }));
    }
    let file = profile_file();
    fs::write(&file, profile.to_string())?;
    Ok(file)
}

fn profile_file() -> PathBuf {
    std::env::temp_dir().join(format!("vmlb-seccomp-{}.json", std::process::id()))
}

/// The volumes of our manifests have the same path on the node and in the container. Propagation back to the node is left
/// out: the test has mounted the BPF file system, as systemd does.
fn mounts(container: &Value) -> Result<Vec<String>> {
    let mut flags = Vec::new();
    for mount in container["volumeMounts"].as_array().context("volumeMounts")? {
        let path = mount["mountPath"].as_str().context("a mountPath")?;
        fs::create_dir_all(path)?;
        flags.extend(["--volume".to_owned(), format!("{path}:{path}:rslave")]);
    }
    Ok(flags)
}
