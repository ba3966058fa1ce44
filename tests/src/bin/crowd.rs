//! Ends of many connections, see `vmlb_tests::lab::crowd`.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    vmlb_tests::lab::crowd::run(&arguments)
}
