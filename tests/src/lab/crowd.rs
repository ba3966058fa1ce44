//! Thousands of connections to one VM, both ends of which are in this process: a stand-in's namespace has no memory of its
//! own.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::namespace::Namespace;
use crate::requests;

/// The port in the guest.
pub const PORT: u16 = 5010;

/// Clients that connect at the same time.
const AT_ONCE: usize = 8;

/// Established connections.
pub struct Crowd {
    /// The client's end and the server's.
    pairs: Vec<(TcpStream, TcpStream)>,
}

impl Crowd {
    /// Opens `each` connections from `client` to each of `servers`, which lead to [`PORT`] in `guest`.
    pub fn gather(
        client: &Namespace,
        guest: &Namespace,
        servers: &[SocketAddr],
        each: usize,
    ) -> Result<Self> {
        let count = each * servers.len();
        allow_files(2 * count + 1000)?;
        let listener = guest.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))?;
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXALLOWABLE)?;
        let server_side = std::thread::spawn(move || welcome(&listener, count));
        let mut clients = BTreeMap::new();
        for part in std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE)
                .map(|part| scope.spawn(move || client.run(|| connect(servers, part, count))))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        }) {
            clients.extend(part?);
        }
        let mut served = server_side.join().expect("no panic")?;
        let pairs = clients.into_iter().map(|(number, client)| {
            Ok((client, served.remove(&number).context("a connection that nobody accepted")?))
        });
        Ok(Self { pairs: pairs.collect::<Result<_>>()? })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.pairs.len()
    }

    /// Says something on every connection, first by the server if its number is even, and checks that the other side hears it.
    pub fn talk(&mut self, word: [u8; 4]) -> Result<()> {
        for (number, (client, server)) in self.pairs.iter_mut().enumerate() {
            let said = if number % 2 == 0 {
                say(server, client, word).and_then(|()| say(client, server, word))
            } else {
                say(client, server, word).and_then(|()| say(server, client, word))
            };
            said.with_context(|| format!("connection {number}"))?;
        }
        Ok(())
    }
}

fn say(from: &mut TcpStream, to: &mut TcpStream, word: [u8; 4]) -> Result<()> {
    from.write_all(&word)?;
    let mut heard = [0; 4];
    to.read_exact(&mut heard)?;
    ensure!(heard == word, "{heard:?} instead of {word:?}");
    Ok(())
}

/// Connections by the number that their clients say first.
type Numbered = BTreeMap<u32, TcpStream>;

fn connect(servers: &[SocketAddr], part: usize, count: usize) -> Result<Numbered> {
    let mut connections = Numbered::new();
    for number in (part..count).step_by(AT_ONCE) {
        let server = servers[number / AT_ONCE % servers.len()];
        let mut connection = requests::connect(server).with_context(|| format!("connection {number}"))?;
        let number = u32::try_from(number)?;
        connection.write_all(&number.to_be_bytes())?;
        connections.insert(number, connection);
    }
    Ok(connections)
}

fn welcome(listener: &TcpListener, count: usize) -> Result<Numbered> {
    let mut connections = Numbered::new();
    for connection in listener.incoming().take(count) {
        let mut connection = requests::prepared(connection?)?;
        let mut number = [0; 4];
        connection.read_exact(&mut number).context("waiting for a connection's number")?;
        connections.insert(u32::from_be_bytes(number), connection);
    }
    Ok(connections)
}

/// Lets this process open so many files.
fn allow_files(count: usize) -> Result<()> {
    let count = u64::try_from(count)?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < count {
        setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count))
            .context("raising the limit of open files")?;
    }
    Ok(())
}
