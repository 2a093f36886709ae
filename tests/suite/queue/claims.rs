//! Who gets which row.

use std::collections::HashSet;
use std::sync::Arc;

use mailqueue::outcome::{Fate, Reason, RecipientState, State};
use tokio::sync::Barrier;

use super::on_each_database;
use super::place::*;

on_each_database! {
    async fn rows_are_found_once_until_they_are_claimed(place: Place) {
        let mids = place.mails(5).await;
        let queue = place.dispatcher("a");
        assert_eq!(find(&queue, i64::MIN, 3).await, mids[..3]);
        assert_eq!(find(&queue, mids[2], 3).await, mids[3..]);
        let claims = claim(&queue, &mids[1..2], at(0)).await.unwrap();
        assert_eq!(claims.iter().map(|claim| claim.id().mid).collect::<Vec<_>>(), mids[1..2]);
        assert_eq!(find(&queue, i64::MIN, 10).await, [mids[0], mids[2], mids[3], mids[4]]);
    }

    async fn a_claimed_row_is_nobody_elses(place: Place) {
        let mids = place.mails(3).await;
        let (a, b) = (place.dispatcher("a"), place.dispatcher("b"));
        assert_eq!(claim(&a, &mids[..2], at(0)).await.unwrap().len(), 2);
        let left = claim(&b, &mids, at(0)).await.unwrap();
        assert_eq!(left.iter().map(|claim| claim.id().mid).collect::<Vec<_>>(), mids[2..]);
        assert_eq!(claim(&a, &mids, at(0)).await.unwrap().len(), 0);
    }

    async fn two_dispatchers_side_by_side_never_get_the_same_row(place: Place) {
        let count = 2000;
        bulk(&place, count).await;
        // Both know of all rows before either claims one.
        let ready = Arc::new(Barrier::new(2));
        let work = |name: &'static str| {
            let (queue, ready) = (place.dispatcher(name), Arc::clone(&ready));
            tokio::spawn(async move {
                let mids = find(&queue, i64::MIN, 2000).await;
                ready.wait().await;
                let mut won = Vec::new();
                for mids in mids.chunks(50) {
                    won.extend(claim(&queue, mids, at(0)).await.unwrap().iter().map(|claim| claim.id().mid));
                }
                (mids.len(), won)
            })
        };
        let (a, b) = (work("a"), work("b"));
        let ((saw_a, a), (saw_b, b)) = (a.await.unwrap(), b.await.unwrap());
        assert_eq!((saw_a, saw_b, a.len() + b.len()), (count, count, count));
        assert_eq!(a.into_iter().chain(b).collect::<HashSet<_>>().len(), count);
    }

    async fn a_deferred_row_is_claimed_by_one_when_it_is_due_and_not_before(place: Place) {
        place.mails(3).await;
        let (a, b) = (place.dispatcher("a"), place.dispatcher("b"));
        for (row, second) in take_all(&a).await.into_iter().zip([30, 10, 20]) {
            settle(&a, row, deferred(at(second))).await;
        }
        assert_eq!(b.next_due().await.unwrap(), Some(at(10)));
        assert_eq!(b.claim_due(at(9), 10).await.unwrap().len(), 0);
        let first = b.claim_due(at(20), 1).await.unwrap();
        assert_eq!(first[0].history().attempts, 1);
        assert_eq!(first[0].history().first_deferred, Some(at(5)));
        assert_eq!(first[0].created(), at(0));
        let (x, y) = tokio::join!(a.claim_due(at(30), 10), b.claim_due(at(30), 10));
        let (x, y) = (x.unwrap(), y.unwrap());
        let mids: HashSet<_> = x.iter().chain(&y).chain(&first).map(|claim| claim.id().mid).collect();
        assert_eq!((x.len() + y.len() + first.len(), mids.len()), (3, 3));
        assert_eq!(a.next_due().await.unwrap(), None);
    }

    async fn the_longest_due_comes_first(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        for (row, second) in take_all(&queue).await.into_iter().zip([30, 10, 20]) {
            settle(&queue, row, deferred(at(second))).await;
        }
        let due = queue.claim_due(at(100), 2).await.unwrap();
        assert_eq!(due.iter().map(|claim| claim.id().mid).collect::<Vec<_>>(), [mids[1], mids[2]]);
    }

    async fn due_rows_with_very_many_recipients_are_claimed_a_few_at_a_time(place: Place) {
        place.mails(3).await;
        let queue = place.dispatcher("a");
        for (row, count) in take_all(&queue).await.into_iter().zip([11_000, 8_000, 11_000]) {
            let waits = |n: i32| recipient(&format!("n{n}@example.org"), RecipientState::Deferred);
            let fate = Fate::Deferred { reason: Reason::Throttled, next_attempt: at(10) };
            let recipients: Vec<_> = (0..count).map(waits).collect();
            settle(&queue, row, verdict(fate, &recipients)).await;
        }
        for numbers in [vec![11_000, 8_000], vec![11_000], vec![]] {
            let due = queue.claim_due(at(10), 10).await.unwrap();
            let known: Vec<_> = due.iter().map(|claim| claim.history().recipients.len()).collect();
            assert_eq!(known, numbers);
        }
    }

    async fn a_row_that_is_gone_drops_its_record(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        let claims = claim(&queue, &mids, at(0)).await.unwrap();
        place.session().await.run(&format!("DELETE FROM {TABLE} WHERE mid = {}", mids[0])).await.unwrap();
        let rows = queue.load(claims).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].columns, mail(1));
        assert_eq!(place.records().await, 1);
    }

    async fn a_claim_that_is_given_back_is_where_it_was(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        let mut rows = take_all(&queue).await;
        settle(&queue, rows.remove(0), deferred(at(10))).await;
        settle(&queue, rows.remove(0), mailqueue::outcome::Verdict::released()).await;
        assert_eq!(place.state(mids[1]).await, "waiting");
        let due = take_due(&queue, at(10)).await.remove(0);
        assert_eq!(send(&queue, std::slice::from_ref(&due)).await, [true]);
        settle(&queue, due, mailqueue::outcome::Verdict::released()).await;
        let listed = place.listed(mids[0]).await.unwrap();
        assert_eq!((listed.state, listed.next_attempt, listed.history.attempts), (State::Deferred, Some(at(10)), 1));
        assert_eq!(place.records().await, 1);
    }
}

/// Many rows at once.
pub async fn bulk(place: &Place, count: usize) {
    let mut session = place.session().await;
    for first in (0..count).step_by(500) {
        let values: Vec<_> =
            (first..count.min(first + 500)).map(|n| format!("('bTEyMzQ{n:05}', '', 'SGVsbG8=')")).collect();
        session.run(&format!("INSERT INTO {TABLE} (mto, msubject, mbody) VALUES {}", values.join(", "))).await.unwrap();
    }
}
