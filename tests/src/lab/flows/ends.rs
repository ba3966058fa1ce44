//! Clients that are silent while the VM moves, and what then happens first.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Seen, Stage};
use crate::requests::{self, Conversation};

pub(super) fn client_speaks(stage: &Stage, server: SocketAddr) -> Result<Seen> {
    let mut conversation = Conversation::open(server)?;
    conversation.ask("first")?;
    let mut seen = Seen::default();
    seen.note();
    while stage.wait_for(u32::try_from(seen.sent)? + 1) {
        timed(&mut seen, || conversation.ask("again").map(drop)).context("the client speaks first")?;
        seen.sent += 1;
    }
    Ok(seen)
}

/// Notes the answer that `ask` gets, and how long it took.
fn timed(seen: &mut Seen, ask: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = SystemTime::now();
    ask()?;
    seen.note();
    seen.slowest = seen.slowest.max(start.elapsed().unwrap_or_default());
    Ok(())
}

/// The server says `lines` lines, is silent for so long after each, and closes after the last silence.
pub(super) fn server_goes_on(server: SocketAddr, silence: Duration, lines: u32) -> Result<Seen> {
    let mut connection = requests::connect(server)?;
    connection.set_read_timeout(Some(silence + requests::PATIENCE))?;
    writeln!(connection, "{} {lines}", silence.as_millis())?;
    let mut reader = BufReader::new(connection);
    let mut seen = Seen::default();
    for number in 0..lines {
        let mut line = String::new();
        reader.read_line(&mut line).with_context(|| format!("waiting for line {number}"))?;
        ensure!(line.ends_with(&format!(" {number}\n")), "{line:?} instead of line {number}");
        seen.note();
    }
    ensure!(
        reader.read(&mut [0]).context("waiting for the server's end")? == 0,
        "octets after the last line"
    );
    seen.note();
    Ok(seen)
}

/// A connection to the line server that has been used.
fn used(server: SocketAddr) -> Result<TcpStream> {
    let connection = requests::connect(server)?;
    Conversation::over(connection.try_clone()?)?.ask("first")?;
    Ok(connection)
}

pub(super) fn client_closes(stage: &Stage, server: SocketAddr) -> Result<Seen> {
    let mut connection = used(server)?;
    let mut seen = Seen::default();
    seen.note();
    if stage.wait_for(1) {
        timed(&mut seen, || {
            connection.shutdown(Shutdown::Write)?;
            let read = connection.read(&mut [0]).context("waiting for the server's end")?;
            ensure!(read == 0, "octets after the end");
            Ok(())
        })
        .context("the client closes first")?;
        seen.sent += 1;
    }
    Ok(seen)
}

pub(super) fn client_resets(stage: &Stage, server: SocketAddr) -> Result<Seen> {
    let connection = used(server)?;
    let mut seen = Seen::default();
    seen.note();
    if stage.wait_for(1) {
        // Without lingering at all the kernel sends RST.
        setsockopt(&connection, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        drop(connection);
        seen.sent += 1;
    }
    Ok(seen)
}
