//! Dispatchers that die, stall and come back.

use mailqueue::outcome::{Fate, Reason, RecipientState};
use mailqueue::queue::{Pools, Settled, Settlement};

use super::on_each_database;
use super::place::*;

on_each_database! {
    async fn a_dispatcher_takes_back_at_start_what_it_had_claimed(place: Place) {
        let mids = place.mails(4).await;
        let queue = place.dispatcher("a");
        let mut rows = take_all(&queue).await;
        settle(&queue, rows.remove(0), deferred(at(10))).await;
        let due = take_due(&queue, at(10)).await;
        let sending = rows.remove(0);
        assert_eq!(send(&queue, std::slice::from_ref(&sending)).await, [true]);
        drop((rows, due));

        let other = place.dispatcher("b");
        assert_eq!(other.recover_own().await.unwrap().released, 0);
        let queue = place.dispatcher("a");
        let recovered = queue.recover_own().await.unwrap();
        assert_eq!((recovered.released, recovered.unknown.len()), (3, 1));
        let unknown = &recovered.unknown[0];
        assert_eq!((unknown.id().mid, unknown.record()), (mids[1], sending.claim.record()));
        assert_eq!(unknown.fingerprint(), Some(sending.fingerprint));
        let states = [place.state(mids[0]).await, place.state(mids[1]).await, place.state(mids[2]).await];
        assert_eq!(states, ["deferred", "sending", "waiting"]);
        assert_eq!(place.listed(mids[0]).await.unwrap().next_attempt, Some(at(10)));
    }

    async fn a_dispatcher_that_dies_again_still_knows_what_nobody_knows(place: Place) {
        place.mails(1).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        for _ in 0..2 {
            let recovered = place.dispatcher("a").recover_own().await.unwrap();
            assert_eq!((recovered.released, recovered.unknown.len()), (0, 1));
        }
    }

    async fn a_claim_that_reaches_the_server_after_it_was_undone_is_given_back_and_no_other(place: Place) {
        let mids = place.mails(5).await;
        let pools = Pools::default();
        let [queue, beside] = [(); 2].map(|()| place.sharing(&pools, place.database.url.clone(), TABLE, "a"));
        let mut rows = take_all(&queue).await;
        settle(&queue, rows.remove(0), deferred(at(10))).await;
        let released = mailqueue::outcome::Verdict::released;
        for at in [0, 1, 1] {
            settle(&queue, rows.remove(at), released()).await;
        }
        let mut session = place.session().await;
        let lost = claim(&queue, &mids[1..2], at(0)).await.unwrap();
        session.run(&format!("CREATE TABLE late AS SELECT * FROM mailqueue_delivery WHERE mid = {}", mids[1])).await.unwrap();
        settle(&queue, queue.load(lost).await.unwrap().remove(0), released()).await;
        // The INSERT and the UPDATE of claims of which the dispatcher knows nothing any more.
        session.run("INSERT INTO mailqueue_delivery SELECT * FROM late").await.unwrap();
        drop(queue.claim_due(at(10), 10).await.unwrap());
        let besides = claim(&beside, &mids[3..4], at(0)).await.unwrap();
        let others = claim(&place.dispatcher("b"), &mids[4..], at(0)).await.unwrap();
        assert_eq!((besides.len(), others.len(), rows.len()), (1, 1, 1));

        queue.sweep().await.unwrap();
        let listed = place.listed(mids[0]).await.unwrap();
        assert_eq!((listed.state.as_str(), listed.next_attempt, listed.owner), ("deferred", Some(at(10)), None));
        assert_eq!(place.state(mids[1]).await, "waiting");
        assert_eq!(send(&queue, &rows).await, [true]);
        let besides = beside.load(besides).await.unwrap();
        assert_eq!(send(&beside, &besides).await, [true]);
        assert_eq!(place.listed(mids[4]).await.unwrap().owner.as_deref(), Some("b"));
        assert_eq!(find(&queue, i64::MIN, 10).await, [mids[1]]);
        assert_eq!(queue.claim_due(at(10), 10).await.unwrap().len(), 1);
    }

    async fn a_row_that_was_sending_and_is_held_by_no_task_is_left_to_the_recovery(place: Place) {
        let mids = place.mails(1).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        drop(rows);
        queue.sweep().await.unwrap();
        assert_eq!(place.state(mids[0]).await, "sending");
        assert_eq!(queue.recover_own().await.unwrap().unknown.len(), 1);
    }

    async fn a_row_whose_take_over_got_no_answer_is_taken_over_again(place: Place) {
        let mids = place.mails(2).await;
        let (a, b) = (place.dispatcher("a"), place.dispatcher("b"));
        let rows = take_all(&a).await;
        send(&a, &rows).await;
        let mut taken = b.take_over(&"a".to_owned(), 0).await.unwrap().unknown;
        // One of them is in hands; the answer about the other one was lost.
        let held = taken.pop().unwrap();
        b.sweep().await.unwrap();
        assert!(b.others().await.unwrap().is_empty(), "both have one token");
        drop((taken, held));
        b.sweep().await.unwrap();
        for queue in [&b, &a] {
            let others = queue.others().await.unwrap();
            assert_eq!(others, [("none".to_owned(), 0)]);
        }
        let taken = b.take_over(&"none".to_owned(), 0).await.unwrap().unknown;
        assert_eq!(taken.iter().filter(|claim| claim.was_taken_over()).count(), mids.len());
    }

    async fn a_silent_dispatcher_is_taken_over_and_a_beating_one_is_not(place: Place) {
        let mids = place.mails(3).await;
        let (a, b) = (place.dispatcher("a"), place.dispatcher("b"));
        a.beat().await.unwrap();
        let rows = take_all(&a).await;
        send(&a, &rows[..1]).await;
        let (other, counter) = b.others().await.unwrap().remove(0);
        assert_eq!((other.as_str(), counter), ("a", 1));
        assert!(a.others().await.unwrap().is_empty());

        a.beat().await.unwrap();
        let recovered = b.take_over(&other, counter).await.unwrap();
        assert_eq!((recovered.released, recovered.unknown.len()), (0, 0));
        let recovered = b.take_over(&other, counter + 1).await.unwrap();
        assert_eq!((recovered.released, recovered.unknown.len()), (2, 1));
        assert_eq!(place.listed(mids[0]).await.unwrap().owner.as_deref(), Some("b"));
        assert_eq!(place.state(mids[1]).await, "waiting");
        assert!(b.others().await.unwrap().is_empty());
    }

    async fn only_one_of_two_takes_a_third_over(place: Place) {
        place.mails(2).await;
        let (a, b, c) = (place.dispatcher("a"), place.dispatcher("b"), place.dispatcher("c"));
        let rows = take_all(&a).await;
        send(&a, &rows).await;
        let other = "a".to_owned();
        let (x, y) = tokio::join!(b.take_over(&other, 0), c.take_over(&other, 0));
        assert_eq!(x.unwrap().unknown.len() + y.unwrap().unknown.len(), 2);
    }

    async fn a_lost_claim_sends_nothing_and_changes_nothing(place: Place) {
        let mids = place.mails(3).await;
        let (a, b) = (place.dispatcher("a"), place.dispatcher("b"));
        let mut rows = take_all(&a).await;
        b.take_over(&"a".to_owned(), 0).await.unwrap();
        assert_eq!(send(&a, &rows).await, [false, false, false]);
        // Claimed by the other, waiting, and claimed by ourselves anew: none is this claim's.
        assert_eq!(claim(&b, &mids[..1], at(2)).await.unwrap().len(), 1);
        assert_eq!(claim(&a, &mids[2..], at(2)).await.unwrap().len(), 1);
        assert_eq!(send(&a, &rows).await, [false, false, false]);
        for mid in &mids {
            let before = place.state(*mid).await;
            assert_eq!(settle(&a, rows.remove(0), failed()).await, Settled::ClaimLost);
            assert_eq!(place.state(*mid).await, before);
        }
    }

    async fn a_claim_that_was_won_back_by_the_same_dispatcher_is_another_claim(place: Place) {
        let mids = place.mails(1).await;
        let a = place.dispatcher("a");
        let row = take_all(&a).await.remove(0);
        settle(&a, row, deferred(at(10))).await;
        let stale = take_due(&a, at(10)).await.remove(0);
        a.recover_own().await.unwrap();
        let fresh = take_due(&a, at(12)).await.remove(0);
        assert_eq!(stale.claim.record(), fresh.claim.record());
        assert_eq!(send(&a, std::slice::from_ref(&stale)).await, [false]);
        assert_eq!(settle(&a, stale, failed()).await, Settled::ClaimLost);
        assert_eq!(send(&a, std::slice::from_ref(&fresh)).await, [true]);
        assert_eq!(place.state(mids[0]).await, "sending");
    }

    async fn a_claim_that_was_taken_over_is_told_from_others_also_after_a_restart(place: Place) {
        let mids = place.mails(3).await;
        let (a, b) = (place.dispatcher("a"), place.dispatcher("b"));
        let theirs = claim(&a, &mids[..1], at(0)).await.unwrap();
        let theirs = a.load(theirs).await.unwrap();
        send(&a, &theirs).await;
        let ours = claim(&b, &mids[1..], at(0)).await.unwrap();
        assert!(ours.iter().all(|claim| !claim.was_taken_over()));
        let ours = b.load(ours).await.unwrap();
        send(&b, &ours).await;
        let taken = b.take_over(&"a".to_owned(), 0).await.unwrap().unknown;
        assert_eq!(taken.iter().map(|claim| claim.was_taken_over()).collect::<Vec<_>>(), [true]);
        drop((theirs, ours, taken));
        for _ in 0..2 {
            let mut unknown = place.dispatcher("b").recover_own().await.unwrap().unknown;
            unknown.sort_by_key(|claim| claim.id().mid);
            let taken_over: Vec<_> = unknown.iter().map(|claim| claim.was_taken_over()).collect();
            assert_eq!(taken_over, [true, false, false]);
        }
    }

    async fn a_record_that_a_claim_leaves_behind_takes_its_recipients_along(place: Place) {
        let mids = place.mails(2).await;
        let (a, b) = (place.dispatcher("a"), place.dispatcher("b"));
        let some = [recipient("x@example.org", RecipientState::Deferred)];
        let fate = Fate::Deferred { reason: Reason::Throttled, next_attempt: at(60) };
        for row in take_all(&a).await {
            settle(&a, row, verdict(fate.clone(), &some)).await;
        }
        let recipients = async || place.session().await.number("SELECT COUNT(*) FROM mailqueue_recipient").await;
        assert_eq!(recipients().await, 2);
        let claims = a.claim_due(at(60), 10).await.unwrap();
        place.session().await.run(&format!("UPDATE {TABLE} SET mbody = 'TmV3'")).await.unwrap();
        // The claims are lost meanwhile: the records are the other's to drop.
        b.take_over(&"a".to_owned(), 0).await.unwrap();
        let stale = claims;
        let claims = b.claim_due(at(60), 10).await.unwrap();
        assert!(a.load(stale).await.unwrap().is_empty());
        assert_eq!((place.records().await, recipients().await), (2, 2));
        assert_eq!(claims.len(), mids.len());
        assert!(b.load(claims).await.unwrap().is_empty());
        assert_eq!((place.records().await, recipients().await), (0, 0));
    }

    async fn an_acceptance_counts_whoever_holds_the_claim(place: Place) {
        let mids = place.mails(2).await;
        let (a, b) = (place.dispatcher("a"), place.dispatcher("b"));
        let mut rows = take_all(&a).await;
        send(&a, &rows).await;
        let taken = b.take_over(&"a".to_owned(), 0).await.unwrap().unknown;
        assert_eq!(settle(&a, rows.remove(0), delivered()).await, Settled::Done);
        assert_eq!(place.state(mids[0]).await, "gone");
        let some = [
            recipient("x@example.org", RecipientState::Accepted),
            recipient("y@example.org", RecipientState::Deferred),
        ];
        let fate = Fate::Deferred { reason: Reason::Throttled, next_attempt: at(60) };
        assert_eq!(settle(&a, rows.remove(0), verdict(fate, &some)).await, Settled::ClaimLost);
        let listed = place.listed(mids[1]).await.unwrap();
        assert_eq!((listed.state.as_str(), listed.owner.as_deref()), ("sending", Some("b")));
        assert_eq!(listed.history.recipients, some[..1]);

        // The one that took over settles what is left for it.
        let group: Vec<_> = taken.into_iter().map(|claim| {
            Settlement { fingerprint: claim.fingerprint(), claim, message_id: None, verdict: held() }
        }).collect();
        let settled: Vec<_> = b.settle(&group, RETRY).await.unwrap().into_iter().collect();
        let of = |mid| settled.iter().find(|(id, _)| id.mid == mid).unwrap().1.clone();
        assert_eq!((of(mids[0]), of(mids[1])), (Settled::ClaimLost, Settled::Done));
        assert_eq!(place.records().await, 1);
    }

    async fn a_claim_given_back_keeps_what_was_accepted_meanwhile(place: Place) {
        let mids = place.mails(1).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        let accepted = [recipient("x@example.org", RecipientState::Accepted)];
        settle(&queue, row, verdict(Fate::Released, &accepted)).await;
        let listed = place.listed(mids[0]).await.unwrap();
        assert_eq!((listed.state.as_str(), &listed.history.recipients[..]), ("deferred", &accepted[..]));
        assert_eq!(take_due(&queue, at(0)).await.len(), 1);
    }

    async fn what_the_ledger_knows_is_settled_without_a_claim(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        send(&queue, &rows).await;
        let ids: Vec<_> = rows.iter().map(|row| (*row.claim.record(), row.fingerprint)).collect();
        let accepted = [recipient("x@example.org", RecipientState::Accepted)];
        let queue = place.dispatcher("a");
        let (record, content) = &ids[0];
        assert!(queue.replay(mids[0], record, *content, &[], Some(RETRY)).await.unwrap().is_some());
        assert!(queue.replay(mids[0], record, *content, &[], Some(RETRY)).await.unwrap().is_none());
        assert_eq!(place.state(mids[0]).await, "gone");

        let (record, content) = &ids[1];
        assert!(queue.replay(mids[1], record, *content, &accepted, None).await.unwrap().is_some());
        let listed = place.listed(mids[1]).await.unwrap();
        assert_eq!((listed.state.as_str(), &listed.history.recipients[..]), ("deferred", &accepted[..]));
        assert_eq!(take_due(&queue, at(0)).await.len(), 1);

        // Another record, or another content, is another mail.
        let (_, content) = &ids[2];
        assert!(queue.replay(mids[2], &ids[0].0, *content, &[], Some(RETRY)).await.unwrap().is_none());
        assert!(queue.replay(mids[2], &ids[2].0, ids[0].1, &[], Some(RETRY)).await.unwrap().is_none() || ids[0].1 == *content);
        assert_eq!(place.state(mids[2]).await, "sending");
    }

    async fn a_replayed_acceptance_leaves_a_claim_of_another_dispatcher_alone(place: Place) {
        let mids = place.mails(1).await;
        let (a, b) = (place.dispatcher("a"), place.dispatcher("b"));
        let row = take_all(&a).await.remove(0);
        send(&a, std::slice::from_ref(&row)).await;
        b.take_over(&"a".to_owned(), 0).await.unwrap();
        let accepted = [recipient("x@example.org", RecipientState::Accepted)];
        assert!(a.replay(mids[0], row.claim.record(), row.fingerprint, &accepted, None).await.unwrap().is_some());
        let listed = place.listed(mids[0]).await.unwrap();
        assert_eq!((listed.state.as_str(), listed.owner.as_deref()), ("sending", Some("b")));
        assert_eq!(listed.history.recipients, accepted);
    }

    async fn expiry_stands_still_while_the_relay_is_away(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        let mut rows = take_all(&queue).await;
        settle(&queue, rows.remove(0), deferred(at(60))).await;
        settle(&queue, rows.remove(0), failed()).await;
        let outage = std::time::Duration::from_secs(100);
        queue.excuse(outage).await.unwrap();
        assert_eq!(place.listed(mids[0]).await.unwrap().history.first_deferred, Some(at(105)));
        assert_eq!(place.listed(mids[1]).await.unwrap().history.first_deferred, Some(at(5)));
        // What this or another dispatcher has excused already, and what passed while the relay was up, is not owed.
        queue.excuse(outage).await.unwrap();
        place.dispatcher("b").excuse(outage).await.unwrap();
        place.dispatcher("b").excuse(std::time::Duration::ZERO).await.unwrap();
        queue.excuse(outage).await.unwrap();
        let since = place.listed(mids[0]).await.unwrap().history.first_deferred.unwrap();
        assert!((at(105)..at(135)).contains(&since), "{since}");
    }

    async fn what_was_excused_while_a_mail_was_on_the_wire_stays_excused(place: Place) {
        let mids = place.mails(1).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        settle(&queue, row, deferred(at(60))).await;
        let row = take_due(&queue, at(60)).await.remove(0);
        place.dispatcher("b").excuse(std::time::Duration::from_secs(100)).await.unwrap();
        settle(&queue, row, deferred(at(120))).await;
        let listed = place.listed(mids[0]).await.unwrap();
        assert_eq!((listed.history.first_deferred, listed.next_attempt), (Some(at(105)), Some(at(120))));
    }

    async fn expiry_is_never_put_off_beyond_now(place: Place) {
        let mids = place.mails(1).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(0);
        settle(&queue, row, deferred(at(60))).await;
        queue.excuse(std::time::Duration::from_secs(10_000_000_000)).await.unwrap();
        let since = place.listed(mids[0]).await.unwrap().history.first_deferred.unwrap();
        let late = jiff::Timestamp::now().duration_since(since);
        assert!((-5..60).contains(&late.as_secs()), "{since}");
    }

    async fn the_emergency_stop_reaches_every_dispatcher(place: Place) {
        let (operator, queue) = (place.dispatcher(""), place.dispatcher("a"));
        let elsewhere = place.queue_on(place.database.url.clone(), "adm_mail_queue", "b");
        let seen = async || {
            let (here, there) = (queue.paused().await.unwrap(), elsewhere.paused().await.unwrap());
            (here.queue, here.relay, there.queue, there.relay)
        };
        assert_eq!(seen().await, (false, false, false, false));
        for _ in 0..2 {
            operator.pause(mailqueue::queue::PauseTarget::Queue).await.unwrap();
            assert_eq!(seen().await, (true, false, false, false));
        }
        operator.pause(mailqueue::queue::PauseTarget::Relay).await.unwrap();
        assert_eq!(seen().await, (true, true, false, true));
        operator.resume(mailqueue::queue::PauseTarget::Queue).await.unwrap();
        operator.resume(mailqueue::queue::PauseTarget::Relay).await.unwrap();
        assert_eq!(seen().await, (false, false, false, false));
    }
}
