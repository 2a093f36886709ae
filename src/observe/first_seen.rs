//! The age of rows that wait and have no record yet. The producers' tables have no time, so it counts from the first poll
//! that saw the row.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// The waiting rows of one queue, each with the time of the first poll that saw it. Bounded by the number of rows that a
/// poll lists, see [`queue::Counts::waiting_rows`](crate::queue::Counts::waiting_rows).
#[derive(Clone, Debug, Default)]
pub struct FirstSeen {
    rows: BTreeMap<i64, Timestamp>,
}

impl FirstSeen {
    /// Takes the numbers of the rows that wait at `now`, and forgets all others. Returns the time of the first poll that
    /// saw the oldest of them; `None` where none waits.
    pub fn update(&mut self, waiting: &[i64], now: Timestamp) -> Option<Timestamp> {
        let before = std::mem::take(&mut self.rows);
        // A clock that was set back must not make a row younger than nothing.
        let since = |mid: &i64| before.get(mid).map_or(now, |since| now.min(*since));
        self.rows = waiting.iter().map(|mid| (*mid, since(mid))).collect();
        self.rows.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_row_is_as_old_as_the_first_poll_that_saw_it_until_it_waits_no_more() {
        let mut rows = FirstSeen::default();
        assert_eq!(rows.update(&[], at(0)), None);
        assert_eq!(rows.update(&[7, 8], at(60)), Some(at(60)));
        assert_eq!(rows.update(&[7, 8, 9], at(120)), Some(at(60)));
        assert_eq!(rows.update(&[9], at(180)), Some(at(120)));
        assert_eq!(rows.update(&[], at(240)), None);
        assert_eq!(rows.update(&[9], at(300)), Some(at(300)), "the number has come back on another mail");
    }

    #[test]
    fn a_clock_that_is_set_back_gives_no_time_in_the_future() {
        let mut rows = FirstSeen::default();
        rows.update(&[1], at(5_000));
        assert_eq!(rows.update(&[1], at(100)), Some(at(100)));
        assert_eq!(rows.update(&[1], at(160)), Some(at(100)));
    }
}
