//! The kernel's clock as the maps use it.

use std::fs;

use nix::time::{ClockId, clock_gettime};

/// The kernel's present jiffies, low 32 bits.
///
/// # Errors
/// When neither the timer list nor the clock can be read.
pub fn jiffies(hz: u32) -> anyhow::Result<u32> {
    if let Some(jiffies) =
        fs::read_to_string("/proc/timer_list").ok().as_deref().and_then(jiffies_of_timer_list)
    {
        return Ok(jiffies);
    }
    // Jiffies follow the monotonic clock and begin five minutes before they wrap (INITIAL_JIFFIES).
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let ticks = u64::try_from(now.tv_sec())? * u64::from(hz)
        + u64::try_from(now.tv_nsec())? * u64::from(hz) / 1_000_000_000;
    let low = u32::try_from(ticks & u64::from(u32::MAX))?;
    Ok(low.wrapping_sub(300 * hz))
}

fn jiffies_of_timer_list(text: &str) -> Option<u32> {
    let number = text.lines().find_map(|line| line.trim().strip_prefix("jiffies: "))?;
    u32::try_from(number.trim().parse::<u64>().ok()? & u64::from(u32::MAX)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiffies_are_read_from_the_timer_list() {
        let text = "Timer List Version: v0.10\nnow at 1 nsecs\n\n  .nohz_mode : 2\njiffies: 4294937297\n";
        assert_eq!(jiffies_of_timer_list(text), Some(4_294_937_297_u64 as u32));
        assert_eq!(jiffies_of_timer_list("jiffies: 4294967297"), Some(1));
        assert_eq!(jiffies_of_timer_list(""), None);
    }
}
