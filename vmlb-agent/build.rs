//! Embeds the BPF object: writes `object.rs`, which defines `OBJECT`, into cargo's output folder.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let object = locate()?;
    let embedded = if object.is_file() {
        format!("*include_bytes!({object:?})")
    } else {
        println!(
            "cargo:warning=no BPF object at {}: `vmlb agent` will not start; `cargo xtask build` makes both",
            object.display()
        );
        "[0u8; 0]".to_owned()
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("object.rs"), source(&embedded))?;
    Ok(())
}

/// Where the object is, telling cargo what to watch. Watched is the folder, which is there even before the object:
/// a missing file would have cargo build the agent anew every time.
fn locate() -> Result<PathBuf, Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=VMLB_BPF_OBJECT");
    if let Some(path) = env::var_os("VMLB_BPF_OBJECT") {
        let path = fs::canonicalize(&path).map_err(|error| format!("VMLB_BPF_OBJECT={path:?}: {error}"))?;
        println!("cargo:rerun-if-changed={}", path.display());
        return Ok(path);
    }
    let package = env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?;
    let folder = Path::new(&package).join("../target/bpf");
    fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    println!("cargo:rerun-if-changed={}", folder.display());
    Ok(folder.join("vmlb.bpf.o"))
}

/// The generated file. ELF structures are read in place, so the octets are aligned to 8.
fn source(embedded: &str) -> String {
    format!(
        "#[repr(C, align(8))]\n\
         struct Aligned<T: ?Sized>(T);\n\
         static ALIGNED: &Aligned<[u8]> = &Aligned({embedded});\n\
         /// The BPF object of this build; empty if there was none.\n\
         pub static OBJECT: &[u8] = &ALIGNED.0;\n"
    )
}
