//! The small servers of every pod, all of them on every pod: what they answer tells which pod was reached and which
//! client address it saw.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// HTTP: `/` welcomes, `/client` answers the client's address; both in the header `X-Client-Address` too.
pub const HTTP: u16 = 80;
/// SSH's banner and nothing more.
pub const BANNER: u16 = 22;
/// Megabytes in either direction, see [`stream`].
pub const BULK: u16 = 5001;
/// UDP: sends datagrams back; `who` is answered with the pod's name and the client's address, `push <milliseconds> <count>` by
/// that many datagrams, one each so many milliseconds, each a number from 0.
pub const ECHO: u16 = 5002;
/// TCP: the pod's name in a line, then the client closes.
pub const GREETING: u16 = 5003;
/// TCP: each line back, behind the pod's name.
pub const LINES: u16 = 5004;
/// TCP: lines that come by themselves, see [`push`].
pub const PUSH: u16 = 5005;

/// Silence after which a server gives a connection up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Octets written at a time by bulk transfers.
pub const CHUNK: usize = 64 * 1024;

/// Runs every server of the pod `name`, after saying `ready` on standard output; returns only with an error.
pub fn serve(name: &str) -> Result<()> {
    let name: Arc<str> = name.into();
    accept(HTTP, &name, answer_http)?;
    accept(BANNER, &name, |mut connection, name| Ok(write!(connection, "SSH-2.0-{name}\r\n")?))?;
    accept(BULK, &name, stream)?;
    accept(LINES, &name, answer_lines)?;
    accept(PUSH, &name, push)?;
    greet(&name)?;
    let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ECHO)).context("binding the echo server")?;
    println!("ready");
    let mut buffer = vec![0; 65536];
    loop {
        // An error here is an ICMP error for an earlier answer, e.g. from a client that has gone.
        let Ok((length, client)) = datagrams.recv_from(&mut buffer) else { continue };
        let request = buffer.get(..length).unwrap_or_default();
        let _client_gone = match request {
            b"who" => datagrams.send_to(format!("{name} {}", canonical(client)).as_bytes(), client),
            _ if request.starts_with(b"push ") => push_datagrams(&datagrams, request, client).map(|()| 0),
            _ => datagrams.send_to(request, client),
        };
    }
}

/// Starts a server that gives each connection a thread with a small stack.
fn accept(port: u16, name: &Arc<str>, answer: fn(TcpStream, &str) -> Result<()>) -> Result<()> {
    let listener = listen(port)?;
    let name = Arc::clone(name);
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let name = Arc::clone(&name);
            let serving = thread::Builder::new().stack_size(256 * 1024).spawn(move || {
                let _client_gone = connection
                    .set_read_timeout(Some(PATIENCE))
                    .and_then(|()| connection.set_write_timeout(Some(PATIENCE)))
                    .map_err(anyhow::Error::from)
                    .and_then(|()| answer(connection, &name));
            });
            if let Err(error) = serving {
                eprintln!("no thread for a connection to port {port}: {error}");
            }
        }
    });
    Ok(())
}

/// Starts the server of short connections: a few threads that answer in place, since threads would cost more than
/// the connections.
fn greet(name: &Arc<str>) -> Result<()> {
    let listener = Arc::new(listen(GREETING)?);
    for _ in 0..16 {
        let (listener, line) = (Arc::clone(&listener), format!("{name}\n"));
        thread::spawn(move || {
            for mut connection in listener.incoming().flatten() {
                let _client_gone = connection
                    .set_read_timeout(Some(PATIENCE))
                    .and_then(|()| connection.write_all(line.as_bytes()))
                    .and_then(|()| connection.read(&mut [0]));
            }
        });
    }
    Ok(())
}

/// Listens on both families with a backlog that a thousand clients at once do not fill.
fn listen(port: u16) -> Result<TcpListener> {
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("binding port {port}"))?;
    // std listens with a backlog of 128; listening again on the same socket only changes the backlog.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXALLOWABLE)?;
    Ok(listener)
}

/// One request a connection, the answer ends with it.
fn answer_http(mut connection: TcpStream, name: &str) -> Result<()> {
    let client = canonical(connection.peer_addr()?);
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let body = match request.split_whitespace().nth(1) {
        Some("/client") => format!("{client}\n"),
        _ => format!("Welcome to {name}!\n"),
    };
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nX-Client-Address: {client}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    Ok(connection.write_all(answer.as_bytes())?)
}

fn answer_lines(mut connection: TcpStream, name: &str) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        connection.write_all(format!("{name} {line}").as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// The server speaks: `<milliseconds> <count>` is answered by that many lines, one each so many milliseconds, with the pod's
/// name and a number from 0. Then the server closes, first.
fn push(mut connection: TcpStream, name: &str) -> Result<()> {
    connection.set_nodelay(true)?;
    let request = read_line(&mut connection)?;
    let (interval, count) = request.split_once(' ').context("a request in two words")?;
    let (interval, count): (u64, u64) = (interval.parse()?, count.parse()?);
    for number in 0..count {
        connection.write_all(format!("{name} {number}\n").as_bytes())?;
        thread::sleep(Duration::from_millis(interval));
    }
    Ok(())
}

/// The server speaks, by UDP.
fn push_datagrams(datagrams: &UdpSocket, request: &[u8], client: SocketAddr) -> std::io::Result<()> {
    let words = std::str::from_utf8(request).unwrap_or_default();
    let mut numbers = words.split(' ').skip(1).map(|word| word.parse().unwrap_or_default());
    let (interval, count) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let datagrams = datagrams.try_clone()?;
    thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        for number in 0..count {
            let _client_gone = datagrams.send_to(number.to_string().as_bytes(), client);
            thread::sleep(Duration::from_millis(interval));
        }
    })?;
    Ok(())
}

/// Bulk transfers, one after another. `GET <octets> <octets a second, 0 = as fast as can be>` is answered by that many octets and their
/// SHA-256; `PUT <octets>`, followed by the octets, by their SHA-256 once all are there.
fn stream(mut connection: TcpStream, _name: &str) -> Result<()> {
    // The client's end ends it.
    while let Ok(request) = read_line(&mut connection) {
        let words: Vec<&str> = request.split_whitespace().collect();
        match words[..] {
            ["GET", octets, rate] => {
                let hash = send(&mut connection, octets.parse()?, rate.parse()?)?;
                connection.write_all(&hash)?;
            }
            ["PUT", octets] => {
                let received = receive(&mut connection, octets.parse()?)?;
                connection.write_all(&received.hash)?;
            }
            _ => bail!("unknown request {request:?}"),
        }
    }
    Ok(())
}

/// Reads up to the line feed and not an octet further; without it.
fn read_line(connection: &mut TcpStream) -> Result<String> {
    let mut line = Vec::new();
    let mut octet = [0];
    while octet != *b"\n" && line.len() < 100 {
        connection.read_exact(&mut octet)?;
        line.push(octet[0]);
    }
    Ok(String::from_utf8(line)?.trim_end().to_owned())
}

/// Sends `octets` octets in which no two chunks are alike, at most `rate` a second (0: no limit); returns their
/// SHA-256.
pub fn send(connection: &mut TcpStream, octets: u64, rate: u64) -> Result<[u8; 32]> {
    let mut chunk: Vec<u8> = (0..CHUNK).map(|at| (at * 31 + at / 251) as u8).collect();
    let (start, mut sent, mut hash) = (Instant::now(), 0, Sha256::new());
    while sent < octets {
        chunk[..8].copy_from_slice(&sent.to_be_bytes());
        let length = usize::try_from(octets - sent).map_or(CHUNK, |left| left.min(CHUNK));
        connection.write_all(&chunk[..length])?;
        hash.update(&chunk[..length]);
        sent += length as u64;
        if let Some(due) = (sent * 1000).checked_div(rate).map(Duration::from_millis) {
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok(hash.finalize().into())
}

/// What arrived of a bulk transfer.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// SHA-256 of the octets.
    pub hash: [u8; 32],
    /// The longest time without an octet.
    pub longest_stall: Duration,
}

/// Receives exactly `octets` octets.
pub fn receive(connection: &mut impl Read, octets: u64) -> Result<Received> {
    let mut buffer = vec![0; CHUNK];
    let (mut left, mut hash) = (octets, Sha256::new());
    let (mut last, mut longest_stall) = (Instant::now(), Duration::ZERO);
    while left > 0 {
        let room = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let length = match connection.read(&mut buffer[..room]) {
            // A read with a time limit is not taken up again by itself.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.with_context(|| format!("{left} octets to go"))?,
        };
        if length == 0 {
            bail!("the connection ended with {left} of {octets} octets to go");
        }
        longest_stall = longest_stall.max(last.elapsed());
        last = Instant::now();
        hash.update(&buffer[..length]);
        left -= length as u64;
    }
    Ok(Received { hash: hash.finalize().into(), longest_stall })
}

/// The address as people write it: IPv4 on a dual-stack socket shows as IPv4.
fn canonical(address: SocketAddr) -> std::net::IpAddr {
    address.ip().to_canonical()
}
