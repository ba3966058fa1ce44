//! The flag about TCP's maximum segment size.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use vmlb_common::abi::ClampMss;

/// The value of `--clamp-mss`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClampFlag(pub ClampMss);

impl FromStr for ClampFlag {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let octets = || {
            let octets = text.parse::<u16>().ok().filter(|octets| *octets >= ClampMss::LEAST);
            let least = ClampMss::LEAST;
            octets.with_context(|| format!("{text:?} is not auto, off or a number of octets from {least} on"))
        };
        Ok(Self(match text {
            "auto" => ClampMss::AUTO,
            "off" => ClampMss::OFF,
            _ => ClampMss(octets()?),
        }))
    }
}

impl fmt::Display for ClampFlag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ClampMss::AUTO => out.write_str("auto"),
            ClampMss::OFF => out.write_str("off"),
            ClampMss(octets) => write!(out, "{octets}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_reads_back_as_it_is_shown_and_anything_else_is_refused() -> anyhow::Result<()> {
        for text in ["auto", "off", "536", "1380", "65535"] {
            assert_eq!(text.parse::<ClampFlag>()?.to_string(), text);
        }
        assert_eq!(ClampFlag::default().to_string(), "auto");
        for text in ["", "on", "0", "1", "535", "65536", "-1"] {
            assert!(text.parse::<ClampFlag>().is_err(), "{text}");
        }
        Ok(())
    }

    #[test]
    fn what_fits_is_never_raised() {
        assert_eq!(ClampMss::AUTO.least(1440), 1440);
        assert_eq!(ClampMss::OFF.least(1440), u32::MAX);
        assert_eq!((ClampMss(1380).least(1440), ClampMss(1440).least(1380)), (1380, 1380));
    }
}
