//! The clients' side of [`crate::servers`]. Every call has a time limit, and is made from the namespace whose thread
//! calls it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::pace;
use crate::servers::{self, Received};

/// Limit of every wait.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// An answer by HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The body without its line end.
    pub body: String,
    /// The client's address as the server saw it.
    pub client: IpAddr,
}

impl Answer {
    /// The name of the pod that welcomed us.
    pub fn pod(&self) -> &str {
        self.body.trim_start_matches("Welcome to ").trim_end_matches('!')
    }

    /// Reads a whole response, as the server sends it or `curl --include` prints it.
    pub fn parse(response: &str) -> Result<Self> {
        let (head, body) = response.split_once("\r\n\r\n").context("the answer has no end of headers")?;
        let client = head
            .lines()
            .find_map(|line| line.strip_prefix("X-Client-Address: "))
            .context("the answer does not tell the client's address")?;
        Ok(Self { body: body.trim_end().to_owned(), client: client.parse()? })
    }
}

/// Connects within [`PATIENCE`], with the same limit on every read and write.
pub fn connect(server: SocketAddr) -> Result<TcpStream> {
    let connection =
        TcpStream::connect_timeout(&server, PATIENCE).with_context(|| format!("connecting to {server}"))?;
    prepared(connection)
}

/// A connection with [`PATIENCE`] on every read and write.
pub fn prepared(connection: TcpStream) -> Result<TcpStream> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

/// Asks the HTTP server for `path`.
pub fn http(server: SocketAddr, path: &str) -> Result<Answer> {
    http_over(connect(server)?, path).with_context(|| format!("waiting for an answer of {server}"))
}

/// The same over a connection that is there.
pub fn http_over(mut connection: TcpStream, path: &str) -> Result<Answer> {
    write!(connection, "GET {path} HTTP/1.1\r\nHost: vmlb\r\n\r\n")?;
    let mut response = String::new();
    connection.read_to_string(&mut response)?;
    Answer::parse(&response)
}

/// A short connection: the name of the pod that answered, read from its greeting.
pub fn greeting(server: SocketAddr) -> Result<String> {
    let mut said = String::new();
    BufReader::new(connect(server)?).read_line(&mut said).with_context(|| format!("waiting for {server}"))?;
    Ok(said.trim_end().to_owned())
}

/// Reads what a server says by itself until it closes: SSH's banner.
pub fn banner(server: SocketAddr) -> Result<String> {
    let mut said = String::new();
    connect(server)?.read_to_string(&mut said).with_context(|| format!("waiting for {server}"))?;
    Ok(said.trim_end().to_owned())
}

/// Downloads `octets` octets at `rate` a second (0: no limit) and checks their hash.
pub fn download(server: SocketAddr, octets: u64, rate: u64) -> Result<Received> {
    download_over(connect(server)?, octets, rate)
}

/// The same over a connection that is there.
pub fn download_over(mut connection: TcpStream, octets: u64, rate: u64) -> Result<Received> {
    writeln!(connection, "GET {octets} {rate}")?;
    let received = servers::receive(&mut connection, octets)?;
    let mut hash = [0; 32];
    connection.read_exact(&mut hash).context("waiting for the hash")?;
    ensure!(hash == received.hash, "the octets that arrived are not those that were sent");
    Ok(received)
}

/// Uploads `octets` octets at `rate` a second (0: no limit) and checks the hash that the server found.
pub fn upload(server: SocketAddr, octets: u64, rate: u64) -> Result<()> {
    upload_over(connect(server)?, octets, rate)
}

/// The same over a connection that is there.
pub fn upload_over(mut connection: TcpStream, octets: u64, rate: u64) -> Result<()> {
    writeln!(connection, "PUT {octets}")?;
    let sent = servers::send(&mut connection, octets, rate)?;
    let mut hash = [0; 32];
    connection.read_exact(&mut hash).context("waiting for the hash")?;
    ensure!(hash == sent, "the octets that arrived are not those that were sent");
    Ok(())
}

/// A connection to the line server that asks again and again.
#[derive(Debug)]
pub struct Conversation {
    reader: BufReader<TcpStream>,
}

impl Conversation {
    /// Connects.
    pub fn open(server: SocketAddr) -> Result<Self> {
        Self::over(connect(server)?)
    }

    /// Talks over a connection to the line server.
    pub fn over(connection: TcpStream) -> Result<Self> {
        Ok(Self { reader: BufReader::new(connection) })
    }

    /// Sends a line and checks that it comes back; returns the name of the pod that answered.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer).context("waiting for the line to come back")?;
        let (pod, echo) = answer.trim_end().split_once(' ').context("the connection ended")?;
        ensure!(echo == line, "sent {line:?}, got {echo:?} back");
        Ok(pod.to_owned())
    }
}

/// A UDP socket with which to ask `server`.
pub fn datagrams(server: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends one datagram and checks that it comes back.
pub fn echo(socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    socket.send(payload).context("sending a datagram")?;
    let mut answer = vec![0; 65536];
    let length = socket.recv(&mut answer).context("waiting for the datagram to come back")?;
    ensure!(answer.get(..length) == Some(payload), "another datagram came back");
    Ok(())
}

/// Asks the UDP server which pod it is and which client it sees.
pub fn who(socket: &UdpSocket) -> Result<(String, IpAddr)> {
    socket.send(b"who").context("sending a datagram")?;
    let mut answer = [0; 256];
    let length = socket.recv(&mut answer).context("waiting for an answer")?;
    let text = std::str::from_utf8(answer.get(..length).unwrap_or_default())?;
    let (pod, client) = text.split_once(' ').context("an answer in two words")?;
    Ok((pod.to_owned(), client.parse()?))
}

/// Asks by HTTP and UDP who answers, and has `octets` sent each way: `pod` answers, and sees `source`.
pub fn served_by(
    [http, bulk, udp]: [SocketAddr; 3],
    octets: u64,
    (pod, source): (&str, IpAddr),
) -> Result<()> {
    pace::at(&format!("asking {pod} at {http}"));
    let answer = self::http(http, "/").context("HTTP")?;
    let found = (answer.pod(), answer.client);
    ensure!(found == (pod, source), "{} answered and saw {}, not {source}", found.0, found.1);
    download(bulk, octets, 0).context("download")?;
    upload(bulk, octets, 0).context("upload")?;
    let socket = datagrams(udp)?;
    let (name, seen) = who(&socket).context("UDP")?;
    ensure!((name.as_str(), seen) == (pod, source), "by UDP {name} answered and saw {seen}, not {source}");
    echo(&socket, &[0xa5; 1000]).context("UDP")
}
