//! Clients that talk by TCP all the time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use super::{INTERVAL, Seen, Stage};
use crate::requests::{self, Conversation};
use crate::servers;

/// Octets of one transfer of many over a connection.
const ROUND: u64 = 256 * 1024;

/// Time between two requests.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(100);

pub(super) fn echo(stage: &Stage, server: SocketAddr) -> Result<Seen> {
    let mut conversation = Conversation::open(server)?;
    let (mut seen, mut next) = (Seen::default(), SystemTime::now());
    while !stage.is_over() {
        conversation.ask(&format!("line {}", seen.sent)).with_context(|| format!("line {}", seen.sent))?;
        seen.sent += 1;
        seen.note();
        next = (next + INTERVAL).max(SystemTime::now());
        stage.sleep_until(next);
    }
    Ok(seen)
}

/// Notes when octets come.
struct Noted<'a> {
    connection: &'a mut TcpStream,
    seen: &'a mut Seen,
}

impl Read for Noted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.connection.read(buffer)?;
        self.seen.note();
        Ok(read)
    }
}

pub(super) fn download(stage: &Stage, server: SocketAddr, rate: u64) -> Result<Seen> {
    let mut connection = requests::connect(server)?;
    let mut seen = Seen::default();
    while !stage.is_over() {
        writeln!(connection, "GET {ROUND} {rate}")?;
        let received = servers::receive(&mut Noted { connection: &mut connection, seen: &mut seen }, ROUND)?;
        let mut hash = [0; 32];
        connection.read_exact(&mut hash).context("waiting for the hash")?;
        ensure!(hash == received.hash, "the octets that arrived are not those that were sent");
        seen.sent += 1;
    }
    Ok(seen)
}

pub(super) fn upload(stage: &Stage, server: SocketAddr, rate: u64) -> Result<Seen> {
    let mut connection = requests::connect(server)?;
    let mut seen = Seen::default();
    while !stage.is_over() {
        writeln!(connection, "PUT {ROUND}")?;
        let sent = servers::send(&mut connection, ROUND, rate)?;
        let mut hash = [0; 32];
        connection.read_exact(&mut hash).context("waiting for the hash")?;
        ensure!(hash == sent, "the octets that arrived are not those that were sent");
        seen.sent += 1;
        seen.note();
    }
    Ok(seen)
}

pub(super) fn push(stage: &Stage, server: SocketAddr) -> Result<Seen> {
    let mut connection = requests::connect(server)?;
    writeln!(connection, "{} 1000000", INTERVAL.as_millis())?;
    let mut reader = BufReader::new(connection);
    let mut seen = Seen::default();
    while !stage.is_over() {
        let mut line = String::new();
        reader.read_line(&mut line).with_context(|| format!("line {}", seen.sent))?;
        let number = line.trim_end().split(' ').nth(1).context("the connection ended")?;
        ensure!(number.parse() == Ok(seen.sent), "line {number} instead of {}", seen.sent);
        seen.sent += 1;
        seen.note();
    }
    Ok(seen)
}

pub(super) fn requests(stage: &Stage, server: SocketAddr) -> Result<Seen> {
    let mut seen = Seen::default();
    // One that waits must not keep the others waiting.
    std::thread::scope(|scope| {
        let (answers, answered) = mpsc::channel();
        let mut next = SystemTime::now();
        while !stage.is_over() {
            let answers = answers.clone();
            seen.sent += 1;
            scope.spawn(move || {
                let start = SystemTime::now();
                let answer = requests::http(server, "/");
                let end = SystemTime::now();
                let took = end.duration_since(start).unwrap_or_default();
                // The receiver outlives the scope's threads.
                let _heard = answers.send(answer.map(|_| (end, took)));
            });
            next += BETWEEN_REQUESTS;
            stage.sleep_until(next);
        }
        drop(answers);
        for answer in answered {
            let (time, took) = answer?;
            seen.times.push(time);
            seen.slowest = seen.slowest.max(took);
        }
        Ok(seen)
    })
}
