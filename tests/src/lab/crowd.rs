//! Thousands of connections to one VM. Their ends are in processes of their own (program `crowd`), since a process may not
//! have that many open files; each does as it is told in a line on its standard input and says when it has.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::namespace::Namespace;
use crate::requests;

/// The ports in the guest, one for each process there.
pub const PORTS: [u16; 2] = [5010, 5011];

/// Established connections, half of them to each port.
#[derive(Debug)]
pub struct Crowd {
    /// Servers and clients in turn.
    ends: Vec<End>,
}

impl Crowd {
    /// Opens `each` connections from `client` to each of `servers`, which lead to the [`PORTS`] in `guest`.
    pub fn gather(
        client: &Namespace,
        guest: &Namespace,
        servers: [SocketAddr; 2],
        each: u32,
    ) -> Result<Self> {
        let mut ends = Vec::new();
        for (port, server) in PORTS.into_iter().zip(servers) {
            let mut listener = End::start(guest, &["listen", &port.to_string(), &each.to_string()])?;
            listener.expect("ready")?;
            let connector = End::start(client, &["connect", &server.to_string(), &each.to_string()])?;
            ends.extend([listener, connector]);
        }
        ends.iter_mut().try_for_each(|end| end.expect("full"))?;
        Ok(Self { ends })
    }

    /// Says four letters on every connection in both directions, first by the servers, and checks that they arrive.
    pub fn talk(&mut self, word: &str) -> Result<()> {
        for pair in self.ends.chunks_exact_mut(2) {
            let [server, client] = pair else { bail!("two ends") };
            server.order(&format!("say {word}"))?;
            client.order(&format!("hear {word}"))?;
            client.order(&format!("say {word}"))?;
            server.order(&format!("hear {word}"))?;
        }
        Ok(())
    }
}

/// A process with one end of many connections. Dropping it kills it.
#[derive(Debug)]
struct End {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl End {
    fn start(place: &Namespace, arguments: &[&str]) -> Result<Self> {
        let mut process = place
            .command(crate::program("crowd")?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the crowd")?;
        let orders = process.stdin.take().context("a pipe was asked for")?;
        let answers = BufReader::new(process.stdout.take().context("a pipe was asked for")?);
        Ok(Self { process, orders, answers })
    }

    fn order(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}").and_then(|()| self.orders.flush())?;
        self.expect("done").with_context(|| order.to_owned())
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(answer.trim_end() == wanted, "the crowd says {answer:?}");
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// The program: `listen PORT COUNT` or `connect ADDRESS COUNT`, then orders.
///
/// # Errors
/// A connection does not come about.
pub fn run(arguments: &[String]) -> Result<()> {
    let [role, place, count] = arguments else { bail!("crowd listen PORT COUNT | connect ADDRESS COUNT") };
    let count: usize = count.parse()?;
    let mut connections = match role.as_str() {
        "listen" => listen(place.parse()?, count)?,
        "connect" => {
            let server: SocketAddr = place.parse()?;
            (0..count)
                .map(|number| requests::connect(server).with_context(|| format!("connection {number}")))
                .collect::<Result<_>>()?
        }
        other => bail!("no role {other:?}"),
    };
    println!("full");
    for order in std::io::stdin().lines() {
        match obey(&mut connections, &order?) {
            Ok(()) => println!("done"),
            Err(error) => println!("{error:#}"),
        }
    }
    Ok(())
}

fn listen(port: u16, count: usize) -> Result<Vec<TcpStream>> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXALLOWABLE)?;
    println!("ready");
    listener.incoming().take(count).map(|connection| requests::prepared(connection?)).collect()
}

fn obey(connections: &mut [TcpStream], order: &str) -> Result<()> {
    let (verb, word) = order.split_once(' ').context("an order in two words")?;
    for (number, connection) in connections.iter_mut().enumerate() {
        let done = match verb {
            "say" => connection.write_all(word.as_bytes()).map_err(Into::into),
            "hear" => hear(connection, word),
            other => bail!("no verb {other:?}"),
        };
        done.with_context(|| format!("connection {number}"))?;
    }
    Ok(())
}

fn hear(connection: &mut TcpStream, word: &str) -> Result<()> {
    let mut heard = vec![0; word.len()];
    connection.read_exact(&mut heard)?;
    ensure!(heard == word.as_bytes(), "{heard:?} instead of {word:?}");
    Ok(())
}
