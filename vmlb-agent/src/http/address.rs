//! Where the agent listens, as a flag says it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use anyhow::Context;

/// The value of `--healthz-address` and `--metrics-address`: an address and a port, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenFlag(pub Option<SocketAddr>);

impl FromStr for ListenFlag {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "off" {
            return Ok(Self(None));
        }
        let wrong = || {
            format!(
                "{text:?} is not an address and a port such as 127.0.0.1:9475, [::]:9475 or :9475, nor off"
            )
        };
        let address = match text.strip_prefix(':') {
            Some(port) => {
                SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port.parse().with_context(wrong)?)
            }
            None => text.parse().with_context(wrong)?,
        };
        anyhow::ensure!(address.port() != 0, "{text:?} names no port");
        Ok(Self(Some(address)))
    }
}

impl fmt::Display for ListenFlag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(out, "{address}"),
            None => out.write_str("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_reads_back_as_it_is_shown() -> anyhow::Result<()> {
        for (text, shown) in [
            ("off", "off"),
            ("127.0.0.1:9475", "127.0.0.1:9475"),
            ("[::1]:9475", "[::1]:9475"),
            (":9475", "[::]:9475"),
        ] {
            let flag: ListenFlag = text.parse()?;
            assert_eq!(flag.to_string(), shown);
            assert_eq!(shown.parse::<ListenFlag>()?, flag);
        }
        Ok(())
    }

    #[test]
    fn what_is_no_address_is_refused_with_examples() {
        for text in ["", "on", "9475", "127.0.0.1", ":x", "localhost:9475", ":65536"] {
            assert!(
                text.parse::<ListenFlag>()
                    .is_err_and(|error| format!("{error:#}").contains("127.0.0.1:9475")),
                "{text}"
            );
        }
        assert!("127.0.0.1:0".parse::<ListenFlag>().is_err());
    }
}
