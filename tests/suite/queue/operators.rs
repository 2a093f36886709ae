//! What operators see, and how they put things right.

use mailqueue::outcome::{Fate, Reason, RecipientState, State, Verdict};
use mailqueue::queue::{Action, Filter, Outcome, Queue, Selected};

use super::on_each_database;
use super::place::*;

on_each_database! {
    async fn a_list_goes_from_page_to_page_by_number(place: Place) {
        let mids = place.mails(7).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        for (row, fate) in rows.into_iter().zip([deferred(at(9)), failed(), Verdict::released(), failed(), held(), deferred(at(9))]) {
            settle(&queue, row, fate).await;
        }
        let all = Filter::default();
        assert_eq!(pages(&queue, &all, 3).await, mids);
        let of = |states: &[State]| Filter { states: states.to_vec(), ..Filter::default() };
        assert_eq!(pages(&queue, &of(&[State::Failed]), 1).await, [mids[1], mids[3]]);
        assert_eq!(pages(&queue, &of(&[State::Waiting]), 1).await, [mids[2]]);
        assert_eq!(pages(&queue, &of(&[State::Waiting, State::Held]), 1).await, [mids[2], mids[4]]);
        let filter = Filter { reason: Some(Reason::Refused), ..Filter::default() };
        assert_eq!(pages(&queue, &filter, 10).await, [mids[1], mids[3]]);
        let filter = Filter { seen_before: Some(at(0)), ..Filter::default() };
        assert!(pages(&queue, &filter, 10).await.is_empty());
        let filter = Filter { seen_before: Some(at(1)), states: vec![State::Claimed, State::Waiting], reason: None };
        assert_eq!(pages(&queue, &filter, 10).await, [mids[6]]);
    }

    async fn a_row_is_shown_with_its_content_and_its_recipients(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        let (record, content) = (*row.claim.record(), row.fingerprint);
        let recipients = [recipient("b@example.org", RecipientState::Refused), recipient("a@example.org", RecipientState::Accepted)];
        settle(&queue, row, verdict(Fate::Failed { reason: Reason::Refused }, &recipients)).await;
        let (listed, read) = queue.look(mids[0]).await.unwrap().unwrap();
        assert_eq!(read.into_columns(), Some(mail(0)));
        assert_eq!((listed.record, listed.fingerprint), (Some(record), Some(content)));
        assert_eq!((listed.id.to_string(), listed.first_seen), (format!("newsletter/{}", mids[0]), Some(at(0))));
        assert_eq!(listed.history.recipients, recipients);
        assert!(queue.look(mids[1] + 1).await.unwrap().is_none());
    }

    async fn counts_are_by_state_and_say_how_old_the_oldest_due_is(place: Place) {
        let waiting = place.mails(6).await;
        let queue = place.dispatcher("a");
        let counts = queue.counts(at(50)).await.unwrap();
        assert_eq!((counts.waiting, counts.waiting_is_estimate, &counts.waiting_rows), (6, false, &waiting));
        assert_eq!((counts.oldest_deferred, counts.oldest_claimed), (None, None));
        let mids = find(&queue, i64::MIN, 4).await;
        let claims = claim(&queue, &mids, at(30)).await.unwrap();
        let rows = queue.load(claims).await.unwrap();
        for (row, fate) in rows.into_iter().zip([deferred(at(40)), deferred(at(90)), held()]) {
            settle(&queue, row, fate).await;
        }
        let counts = queue.counts(at(50)).await.unwrap();
        assert_eq!(counts.records, [(State::Claimed, 1), (State::Deferred, 2), (State::Held, 1)]);
        assert_eq!((counts.waiting, &counts.waiting_rows[..]), (2, &waiting[4..]));
        assert_eq!((counts.oldest_deferred, counts.oldest_claimed), (Some(at(40)), Some(at(30))));
    }

    async fn more_than_ten_thousand_waiting_rows_are_estimated(place: Place) {
        super::claims::bulk(&place, 10_500).await;
        let counts = place.dispatcher("").counts(at(0)).await.unwrap();
        assert!(counts.waiting_is_estimate);
        assert!((10_001..=13_000).contains(&counts.waiting), "{}", counts.waiting);
    }

    async fn a_hold_keeps_a_waiting_row_from_dispatchers_until_its_release(place: Place) {
        let mids = place.mails(3).await;
        let operator = place.dispatcher("");
        assert_eq!(apply(&operator, &Action::Hold, &mids[..2]).await, [Outcome::Done, Outcome::Done]);
        assert_eq!(apply(&operator, &Action::Hold, &mids[..1]).await, [Outcome::Done]);
        let listed = place.listed(mids[0]).await.unwrap();
        assert_eq!((listed.state, listed.reason), (State::Held, Some(Reason::Operator)));
        let queue = place.dispatcher("a");
        assert_eq!(find(&queue, i64::MIN, 10).await, mids[2..]);
        assert_eq!(queue.sweep().await.unwrap(), 0);
        assert_eq!(apply(&operator, &Action::Release, &mids[..1]).await, [Outcome::Done]);
        assert_eq!(take_due(&queue, at(100)).await[0].columns, mail(0));
        assert!(matches!(apply(&operator, &Action::Release, &mids[2..]).await[0], Outcome::Rejected(_)));
    }

    async fn a_retry_offers_the_mail_to_all_but_those_who_accepted_it(place: Place) {
        let mids = place.mails(1).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        let recipients = [
            recipient("a@example.org", RecipientState::Accepted),
            recipient("b@example.org", RecipientState::Refused),
        ];
        settle(&queue, row, verdict(Fate::Failed { reason: Reason::Refused }, &recipients)).await;
        assert_eq!(apply(&queue, &Action::Retry, &mids).await, [Outcome::Done]);
        let row = take_due(&queue, at(100)).await.remove(0);
        assert_eq!(row.claim.history().recipients, recipients[..1]);
        assert_eq!(row.claim.history().first_deferred, None);
    }

    async fn a_retry_makes_a_deferred_or_unreadable_row_due_now(place: Place) {
        let mids = place.mails(4).await;
        let queue = place.dispatcher("a");
        let unreadable = Fate::Unreadable { reason: Reason::Truncated, detail: "mto is cut".to_owned() };
        let fates = [deferred(at(9999)), verdict(unreadable, &[]), held()];
        let mids_taken = claim(&queue, &mids[..3], at(0)).await.unwrap();
        for (row, fate) in queue.load(mids_taken).await.unwrap().into_iter().zip(fates) {
            settle(&queue, row, fate).await;
        }
        let outcomes = apply(&queue, &Action::Retry, &mids).await;
        assert_eq!((&outcomes[0], &outcomes[1], &outcomes[3]), (&Outcome::Done, &Outcome::Done, &Outcome::Done));
        assert!(matches!(outcomes[2], Outcome::Rejected(_)));
        let due: Vec<_> = take_due(&queue, at(100)).await.iter().map(|row| row.claim.id().mid).collect();
        assert_eq!(due, mids[..2]);
    }

    async fn a_delete_takes_row_and_record(place: Place) {
        let mids = place.mails(4).await;
        let queue = place.dispatcher("a");
        let claims = claim(&queue, &mids[..2], at(0)).await.unwrap();
        let row = queue.load(claims).await.unwrap().remove(0);
        settle(&queue, row, failed()).await;
        let outcomes = apply(&queue, &Action::Delete, &[mids[2], mids[0], mids[1], 9_999]).await;
        assert_eq!((&outcomes[0], &outcomes[1], &outcomes[3]), (&Outcome::Done, &Outcome::Done, &Outcome::NotFound));
        assert!(matches!(outcomes[2], Outcome::Rejected(_)), "a claimed row is left alone");
        let states = [place.state(mids[0]).await, place.state(mids[1]).await, place.state(mids[2]).await];
        assert_eq!(states, ["gone", "claimed", "gone"]);
        assert_eq!(place.state(mids[3]).await, "waiting");
        assert_eq!(place.records().await, 1);
    }

    async fn what_a_dispatcher_is_at_work_on_is_left_alone(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows[..1]).await;
        for action in [Action::Hold, Action::Release, Action::Retry, Action::Delete] {
            let outcomes = apply(&place.dispatcher(""), &action, &mids).await;
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Rejected(_))), "{action:?}: {outcomes:?}");
        }
        assert_eq!(send(&queue, &rows).await, [true, true]);
    }

    async fn a_wish_for_an_old_content_does_not_touch_the_new(place: Place) {
        let mids = place.mails(1).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        settle(&queue, row, failed()).await;
        place.session().await.run(&format!("UPDATE {TABLE} SET mto = 'bmV3' WHERE mid = {}", mids[0])).await.unwrap();
        assert!(matches!(apply(&queue, &Action::Delete, &mids).await[0], Outcome::Rejected(_)));
        assert_eq!(place.state(mids[0]).await, "waiting");
    }

    async fn a_row_that_has_changed_since_it_was_chosen_is_left_alone(place: Place) {
        let (queue, operator) = (place.dispatcher("a"), place.dispatcher(""));
        for action in [Action::Retry, Action::Hold, Action::Release, Action::Delete] {
            let aside = if matches!(action, Action::Release) { held } else { failed };
            let mids = place.mails(3).await;
            for row in take_all(&queue).await {
                settle(&queue, row, aside()).await;
            }
            let waiting = place.mails(1).await[0];
            let rows = operator.list(&Filter::default(), mids[0] - 1, 10).await.unwrap();
            let selected = operator.select(&rows).await.unwrap();

            let again = if matches!(action, Action::Release) { Action::Release } else { Action::Retry };
            assert_eq!(apply(&operator, &again, &mids[..1]).await, [Outcome::Done]);
            let mut session = place.session().await;
            for mid in [mids[1], waiting] {
                session.run(&format!("UPDATE {TABLE} SET msubject = 'bmV3' WHERE mid = {mid}")).await.unwrap();
            }
            let outcomes = operator.apply(&action, &selected, at(50)).await.unwrap();
            for (mid, state) in [(mids[0], "deferred"), (mids[1], if matches!(action, Action::Release) { "held" } else { "failed" }), (waiting, "waiting")] {
                let answer = &outcomes.iter().find(|(answered, _)| *answered == mid).unwrap().1;
                let Outcome::Rejected(why) = answer else { panic!("{action:?} {mid}: {answer:?}") };
                assert!(why.contains("changed meanwhile"), "{why}");
                assert_eq!(place.state(mid).await, state, "{action:?} {mid}");
            }
            assert!(outcomes.contains(&(mids[2], Outcome::Done)), "{action:?}: {outcomes:?}");
            session.run(&format!("DELETE FROM {TABLE}; DELETE FROM mailqueue_delivery")).await.unwrap();
        }
    }

    async fn actions_on_many_rows_are_applied_in_the_order_asked(place: Place) {
        super::claims::bulk(&place, 300).await;
        let queue = place.dispatcher("");
        let mut mids = find(&queue, i64::MIN, 300).await;
        mids.reverse();
        let outcomes = queue.apply(&Action::Hold, &selected(&mids), at(0)).await.unwrap();
        assert_eq!(outcomes.iter().map(|(mid, _)| *mid).collect::<Vec<_>>(), mids);
        assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Done));
        assert_eq!(queue.counts(at(0)).await.unwrap().records, [(State::Held, 300)]);
    }
}

async fn pages(queue: &Queue, filter: &Filter, size: u32) -> Vec<i64> {
    let mut mids: Vec<i64> = Vec::new();
    loop {
        let page = queue.list(filter, mids.last().copied().unwrap_or(i64::MIN), size).await.unwrap();
        mids.extend(page.iter().map(|listed| listed.id.mid));
        if page.len() < size as usize {
            return mids;
        }
    }
}

fn selected(mids: &[i64]) -> Vec<Selected> {
    mids.iter().copied().map(Selected::from).collect()
}

async fn apply(queue: &Queue, action: &Action, mids: &[i64]) -> Vec<Outcome> {
    queue.apply(action, &selected(mids), at(50)).await.unwrap().into_iter().map(|(_, outcome)| outcome).collect()
}
