//! The value of `--device`: which devices an operator means, and by which hook.

use std::fmt;
use std::str::FromStr;

use anyhow::ensure;

use crate::loader::attach::Mode;

/// A name or a shell pattern, and the hook where the operator wants a certain one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFlag {
    /// Name of the device, or a pattern of names: `*` is any letters, `?` is any one.
    pub name: String,
    /// The hook; `None`: the best one.
    pub mode: Option<Mode>,
}

impl DeviceFlag {
    /// Whether a device of this name is meant. No pattern means the loopback.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.is_pattern() {
            name != "lo" && matches(self.name.as_bytes(), name.as_bytes())
        } else {
            self.name == name
        }
    }

    fn is_pattern(&self) -> bool {
        self.name.contains(['*', '?'])
    }
}

/// After a mismatch the last `*` takes one more letter; earlier ones need not be tried again.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut letter, mut star) = (0, 0, None);
    while letter < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, letter));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || name.get(letter) == Some(wanted) => {
                at += 1;
                letter += 1;
            }
            _ => {
                let Some((place, taken)) = star else { return false };
                star = Some((place, taken + 1));
                (at, letter) = (place + 1, taken + 1);
            }
        }
    }
    pattern.iter().skip(at).all(|rest| *rest == b'*')
}

impl FromStr for DeviceFlag {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, mode) = match text.split_once('=') {
            None => (text, None),
            Some((name, "xdp")) => (name, Some(Mode::Xdp)),
            Some((name, "tc")) => (name, Some(Mode::Tc)),
            Some((_, mode)) => anyhow::bail!("{text:?}: a device is attached by xdp or tc, not by {mode:?}"),
        };
        // The kernel's own rules for names (dev_valid_name); what a `*` takes is not counted.
        let valid = !name.is_empty()
            && name.bytes().filter(|letter| *letter != b'*').count() < 16
            && ![".", ".."].contains(&name)
            && !name.contains(|letter: char| letter == '/' || letter == ':' || letter.is_whitespace());
        ensure!(valid, "{name:?} is not the name of a network device, nor a pattern of such names");
        Ok(Self { name: name.to_owned(), mode })
    }
}

impl fmt::Display for DeviceFlag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)?;
        self.mode.map_or(Ok(()), |mode| write!(out, "={}", mode.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_itself_and_a_pattern_what_a_shell_would_take_for_it() -> anyhow::Result<()> {
        for (pattern, matching, others) in [
            ("eth0", &["eth0"][..], &["eth00", "eth", "xeth0", ""][..]),
            ("eth*", &["eth", "eth0", "eth10.7"], &["et", "veth0", "lo"]),
            ("eth?", &["eth0", "ethx"], &["eth", "eth10"]),
            ("*", &["eth0", "wlan0"], &["lo"]),
            ("?o", &["bo"], &["lo"]),
            ("en*s?f*", &["enp1s0f0", "ens1s2f"], &["enp1s0", "enp1f0"]),
            ("e*0*0", &["e00", "eth0x0", "e0000"], &["e0", "eth0x1"]),
            ("lo", &["lo"], &["lo0"]),
            ("e[0-9]", &["e[0-9]"], &["e0"]),
        ] {
            let flag: DeviceFlag = pattern.parse()?;
            for name in matching {
                assert!(flag.matches(name), "{pattern} {name}");
            }
            for name in others {
                assert!(!flag.matches(name), "{pattern} {name}");
            }
        }
        Ok(())
    }

    #[test]
    fn what_no_device_can_be_called_is_refused() -> anyhow::Result<()> {
        for text in ["", "=xdp", "eth0=native", "a/b", "0123456789abcdef", "a b", "..", "a*/"] {
            assert!(text.parse::<DeviceFlag>().is_err(), "{text}");
        }
        for text in ["eth0=xdp", "eth*=tc", "?", "*0123456789abcde*"] {
            assert_eq!(text.parse::<DeviceFlag>()?.to_string(), text);
        }
        Ok(())
    }
}
