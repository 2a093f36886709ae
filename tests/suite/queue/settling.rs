//! What becomes of a row when the smarthost has spoken.

use mailqueue::outcome::{Fate, Reason, RecipientState, State};
use mailqueue::queue::{Settled, Settlement};

use super::on_each_database;
use super::place::*;

on_each_database! {
    async fn a_delivered_row_is_deleted_with_its_record(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        assert_eq!(send(&queue, &rows).await, [true, true, true]);
        let group: Vec<_> = rows.into_iter().take(2).map(|row| settlement(row, delivered())).collect();
        let settled = queue.settle(&group, RETRY).await.unwrap();
        assert!(settled.iter().zip(&mids).all(|((id, settled), mid)| id.mid == *mid && *settled == Settled::Done));
        assert_eq!((place.state(mids[0]).await.as_str(), place.state(mids[2]).await.as_str()), ("gone", "sending"));
        assert_eq!(place.records().await, 1);
    }

    async fn every_fate_is_kept_with_its_reason(place: Place) {
        let mids = place.mails(4).await;
        let queue = place.dispatcher("a");
        let detail = "mbody: no base64 at byte 7 – cut?\0".to_owned();
        let fates = [
            Fate::Deferred { reason: Reason::Throttled, next_attempt: at(60) },
            Fate::Failed { reason: Reason::Expired },
            Fate::Held { reason: Reason::OutcomeUnknown },
            Fate::Unreadable { reason: Reason::Base64Invalid, detail },
        ];
        let rows = take_all(&queue).await.into_iter();
        let group: Vec<_> = rows.zip(fates).map(|(row, fate)| settlement(row, verdict(fate, &[]))).collect();
        assert!(queue.settle(&group, RETRY).await.unwrap().iter().all(|(_, settled)| *settled == Settled::Done));
        let expected = [
            (State::Deferred, Reason::Throttled, Some(at(60))),
            (State::Failed, Reason::Expired, None),
            (State::Held, Reason::OutcomeUnknown, None),
            (State::Unreadable, Reason::Base64Invalid, None),
        ];
        for (mid, (state, reason, next_attempt)) in mids.iter().zip(expected) {
            let listed = place.listed(*mid).await.unwrap();
            assert_eq!((listed.state, listed.reason, listed.next_attempt), (state, Some(reason), next_attempt));
            assert_eq!(listed.last_reply.as_deref(), Some("451 4.3.0 Try later"));
            assert_eq!((listed.owner, listed.message_id.as_deref()), (None, Some("<m@x>")));
            assert_eq!((listed.history.attempts, listed.history.first_deferred), (1, Some(at(5))));
        }
        let detail = place.listed(mids[3]).await.unwrap().detail.unwrap();
        assert_eq!(detail, "mbody: no base64 at byte 7 – cut?\u{fffd}");
    }

    async fn an_acceptance_of_some_recipients_is_kept_over_the_attempts(place: Place) {
        let mids = place.mails(1).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        let long = format!("{}@example.org", "ü".repeat(900));
        let recipients = [
            recipient("a@example.org", RecipientState::Accepted),
            recipient("b@example.org", RecipientState::Deferred),
            recipient("c@example.org", RecipientState::Refused),
            recipient(&long, RecipientState::Invalid),
        ];
        let fate = Fate::Deferred { reason: Reason::Throttled, next_attempt: at(60) };
        settle(&queue, row, verdict(fate.clone(), &recipients)).await;
        let row = take_due(&queue, at(60)).await.remove(0);
        assert_eq!(row.claim.history().recipients, recipients);

        // Whatever a later verdict says: what was accepted stays accepted.
        let later = [
            recipient("a@example.org", RecipientState::Deferred),
            recipient("b@example.org", RecipientState::Accepted),
        ];
        settle(&queue, row, verdict(fate, &later)).await;
        let states: Vec<_> =
            place.listed(mids[0]).await.unwrap().history.recipients.iter().map(|r| r.state).collect();
        use RecipientState::{Accepted, Invalid, Refused};
        assert_eq!(states, [Accepted, Accepted, Refused, Invalid]);
    }

    async fn an_acceptance_that_is_settled_twice_does_no_harm(place: Place) {
        place.mails(1).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        let content = row.fingerprint;
        send(&queue, std::slice::from_ref(&row)).await;
        let again = queue.recover_own().await.unwrap().unknown.remove(0);
        assert_eq!(settle(&queue, row, delivered()).await, Settled::Done);
        let again = Settlement { claim: again, fingerprint: Some(content), message_id: None, verdict: delivered() };
        assert_eq!(queue.settle(&[again], RETRY).await.unwrap()[0].1, Settled::Done);
        assert_eq!(place.records().await, 0);
    }

    async fn a_row_with_new_content_under_its_number_is_never_deleted(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let mut session = place.session().await;
        session.run(&format!("UPDATE {TABLE} SET mbody = 'TmV3' WHERE mid = {}", mids[1])).await.unwrap();
        session.run(&format!("DELETE FROM {TABLE} WHERE mid = {}", mids[2])).await.unwrap();
        let settled = queue.settle(&rows.into_iter().map(|row| settlement(row, delivered())).collect::<Vec<_>>(), RETRY).await.unwrap();
        let settled: Vec<_> = settled.into_iter().map(|(_, settled)| settled).collect();
        assert_eq!(settled, [Settled::Done, Settled::RowGone, Settled::RowGone]);
        assert_eq!(place.state(mids[0]).await, "gone");
        assert_eq!(place.state(mids[1]).await, "waiting");
        assert_eq!(place.records().await, 0);
    }

    async fn an_old_record_does_not_bind_a_new_mail(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        for row in take_all(&queue).await {
            settle(&queue, row, failed()).await;
        }
        place.session().await.run(&format!("UPDATE {TABLE} SET msubject = NULL WHERE mid = {}", mids[0])).await.unwrap();
        assert!(find(&queue, i64::MIN, 10).await.is_empty());
        assert_eq!(queue.sweep().await.unwrap(), 1);
        assert_eq!(queue.sweep().await.unwrap(), 0);
        assert_eq!(find(&queue, i64::MIN, 10).await, [mids[0]]);
        assert_eq!(place.state(mids[1]).await, "failed");
    }

    async fn a_deferred_row_that_was_changed_is_waiting_again_instead_of_sent(place: Place) {
        let mids = place.mails(1).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        settle(&queue, row, deferred(at(10))).await;
        place.session().await.run(&format!("UPDATE {TABLE} SET mto = 'bmV3' WHERE mid = {}", mids[0])).await.unwrap();
        assert_eq!(take_due(&queue, at(10)).await.len(), 0);
        assert_eq!(place.state(mids[0]).await, "waiting");
        assert_eq!(take_all(&queue).await[0].columns.mto.as_deref(), Some(b"bmV3".as_slice()));
    }

    async fn records_without_a_row_are_swept_but_not_those_at_work(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        let mut rows = take_all(&queue).await;
        settle(&queue, rows.remove(0), held()).await;
        settle(&queue, rows.remove(0), failed()).await;
        place.session().await.run(&format!("DELETE FROM {TABLE} WHERE mid <> {}", mids[1])).await.unwrap();
        assert_eq!(place.dispatcher("b").sweep().await.unwrap(), 1);
        assert_eq!(place.records().await, 2);
    }

    async fn a_large_group_of_mixed_verdicts_is_settled_in_one_go(place: Place) {
        super::claims::bulk(&place, 300).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        assert_eq!(send(&queue, &rows).await, vec![true; 300]);
        let verdicts = [delivered(), deferred(at(60)), failed()];
        let group: Vec<_> = rows.into_iter().enumerate().map(|(n, row)| settlement(row, verdicts[n % 3].clone())).collect();
        assert!(queue.settle(&group, RETRY).await.unwrap().iter().all(|(_, settled)| *settled == Settled::Done));
        let counts = queue.counts(at(60)).await.unwrap();
        assert_eq!(counts.records, [(State::Deferred, 100), (State::Failed, 100)]);
        assert_eq!((counts.waiting, counts.oldest_deferred), (0, Some(at(60))));
        assert_eq!(place.session().await.number(&format!("SELECT COUNT(*) FROM {TABLE}")).await, 200);
    }
}
