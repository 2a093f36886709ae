//! Rows of the corpus, damaged at random: no panic, and what is sent still fits the wire. `MAILQUEUE_TEST_MUTATIONS`
//! says how many, for long runs; tests/fuzz does the same with an eye on the code that is reached.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailqueue::mail::Columns;

use crate::fitness::try_everywhere;
use crate::rows::corpus;

const ORDINARY_RUN: u64 = 1_000;

/// Small, and the same in every run: xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

/// Pieces of all columns of the corpus, which get into each other's places.
fn damage(bytes: &mut Vec<u8>, others: &[Vec<u8>], dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + dice.below(40)).min(bytes.len());
        let other = &others[dice.below(others.len())];
        let from = dice.below(other.len() + 1);
        let piece = &other[from..(from + dice.below(80)).min(other.len())];
        match dice.below(6) {
            0 => drop(bytes.drain(at..end)),
            1 => drop(bytes.splice(at..at, piece.iter().copied())),
            2 => drop(bytes.splice(at..end, piece.iter().copied())),
            3 => bytes.insert(at, b"\r\n\0\"<>=?:;,-\x80\xff "[dice.below(15)]),
            4 => bytes.truncate(at),
            _ => bytes.get_mut(at).into_iter().for_each(|byte| *byte = dice.below(256) as u8),
        }
    }
}

#[test]
fn damaged_rows_are_sent_fit_for_the_wire_or_set_aside() {
    let count = std::env::var("MAILQUEUE_TEST_MUTATIONS").map_or(ORDINARY_RUN, |count| count.parse().unwrap());
    let decoded =
        |column: &Option<Vec<u8>>| column.as_ref().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
    let rows: Vec<[Vec<u8>; 5]> = corpus()
        .iter()
        .map(|row| {
            let columns = &row.columns;
            [&columns.mto, &columns.msubject, &columns.mheaders, &columns.mparams, &columns.mbody].map(decoded)
        })
        .filter(|columns| columns.iter().map(Vec::len).sum::<usize>() < 20_000)
        .collect();
    let others: Vec<Vec<u8>> = rows.iter().flatten().filter(|column| !column.is_empty()).cloned().collect();
    let mut sent = 0;
    for number in 0..count {
        let mut dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut row = rows[dice.below(rows.len())].clone();
        for _ in 0..=dice.below(2) {
            damage(&mut row[dice.below(5)], &others, &mut dice);
        }
        let [mto, msubject, mheaders, mparams, mbody] = row.map(|column| Some(STANDARD.encode(column).into_bytes()));
        let columns = Columns { mto, msubject, mbody, mheaders, mparams };
        let result = std::panic::catch_unwind(|| try_everywhere(&columns));
        sent += result.unwrap_or_else(|_| panic!("mutation {number}: {columns:?}")).is_some() as u64;
    }
    assert!(sent > count / 2, "only {sent} of {count} were sent: the mutations try too little");
}
