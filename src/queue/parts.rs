//! A group of rows that is settled in parts: a part in which something goes wrong is halved, until a row stands alone.

use std::ops::Range;

use super::settled::Settled;

/// Rows that were found locked one by one without a success between them. From here on the table is taken to be locked,
/// unless the last row of the group tells otherwise, and the rest is left for later: each row costs a lock wait.
pub(super) const LOCKED_ENOUGH: u32 = 3;

/// The parts of a group that are left, and the ends of the others.
pub(super) struct Parts {
    /// The next part is the last one here. No part is empty.
    left: Vec<Range<usize>>,
    ends: Vec<Option<Settled>>,
    /// Rows that were found locked since the last success.
    locked: u32,
}

impl Parts {
    /// A group of this many rows, in one part.
    pub(super) fn of(rows: usize) -> Self {
        let mut left = Vec::new();
        if rows > 0 {
            left.push(0..rows);
        }
        Self { left, ends: vec![None; rows], locked: 0 }
    }

    /// Takes the next part.
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        self.left.pop()
    }

    /// The part was settled, with these ends.
    pub(super) fn ended(&mut self, part: Range<usize>, ends: Vec<Settled>) {
        self.locked = 0;
        self.set(part, ends);
    }

    /// The part was settled in another way than it was tried: it counts as no success.
    pub(super) fn set(&mut self, part: Range<usize>, ends: Vec<Settled>) {
        self.ends[part].iter_mut().zip(ends).for_each(|(end, settled)| *end = Some(settled));
    }

    /// Halves a part. Returns false where that is a single row, which stays with the caller.
    pub(super) fn halve(&mut self, part: &Range<usize>) -> bool {
        if part.len() < 2 {
            return false;
        }
        let middle = part.start + part.len() / 2;
        self.left.extend([middle..part.end, part.start..middle]);
        true
    }

    /// Lets the last row that is left come next, alone. Where it suffers the same as the rows before it, all of them
    /// are taken to.
    pub(super) fn try_last(&mut self) {
        let Some(bottom) = self.left.first_mut() else { return };
        bottom.end -= 1;
        let last = bottom.end..bottom.end + 1;
        if bottom.start == bottom.end {
            self.left.remove(0);
        }
        self.left.push(last);
    }

    /// Takes all parts that are left.
    pub(super) fn rest(&mut self) -> Vec<Range<usize>> {
        std::mem::take(&mut self.left)
    }

    /// Another session has locked this row. Leaves it for later, and with it all others once enough were locked.
    pub(super) fn locked(&mut self, row: Range<usize>, detail: String) {
        let locked = Settled::Locked { detail };
        self.set(row, vec![locked.clone()]);
        self.locked += 1;
        if self.locked == LOCKED_ENOUGH {
            self.try_last();
        } else if self.locked > LOCKED_ENOUGH {
            for part in self.rest() {
                self.set(part.clone(), vec![locked.clone(); part.len()]);
            }
        }
    }

    /// Returns the ends of all rows, in their order. No part is left.
    pub(super) fn into_ends(self) -> Vec<Settled> {
        self.ends.into_iter().flatten().collect()
    }
}
