//! The suite of API servers against a real one: `cargo xtask test cluster`.

#[path = "../control_plane/walk.rs"]
#[allow(dead_code, reason = "only what maps mean is used here")]
mod walk;

use anyhow::Result;
use vmlb_tests::api_server::real::{self, RealApi};
use vmlb_tests::api_server::suite::Suite;
use vmlb_tests::skip;

#[test]
fn a_real_cluster_is_followed_through_whatever_happens_to_it() -> Result<()> {
    let assets = match real::assets() {
        Ok(assets) => assets,
        Err(why) => {
            skip::announce("a_real_cluster_is_followed_through_whatever_happens_to_it", &why);
            return Ok(());
        }
    };
    let folder = std::env::temp_dir().join(format!("vmlb-real-api-{}", std::process::id()));
    let outcome =
        RealApi::start(&assets, &folder).and_then(|server| Suite::begin(server, walk::meaning)?.run());
    match outcome {
        Ok(()) => Ok(std::fs::remove_dir_all(folder)?),
        Err(error) => Err(error.context(format!("logs are in {}", folder.display()))),
    }
}
