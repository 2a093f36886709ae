//! A link to the database that breaks at every single packet, before the server got it or before we got the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use mailqueue::outcome::State;
use mailqueue::queue::{Action, Filter, Outcome, Queue, Settled};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::on_each_server;
use super::place::*;

#[derive(Clone, Copy, Debug)]
enum Lost {
    /// The server never gets the packet.
    Packet,
    /// The server gets it, and its answer is lost.
    Answer,
    /// The same, and the server cannot be reached any more.
    Server,
}

on_each_server! {
    async fn a_link_that_breaks_before_any_packet_loses_and_repeats_nothing(place: Place) {
        each_packet_is_lost_once(&place, Lost::Packet).await;
    }

    async fn a_link_that_breaks_before_any_answer_loses_and_repeats_nothing(place: Place) {
        each_packet_is_lost_once(&place, Lost::Answer).await;
    }

    async fn a_link_that_breaks_in_the_middle_of_a_delete_leaves_the_outcomes_of_what_was_deleted_before(place: Place) {
        const ROWS: usize = 150;
        // Rows of one transaction.
        const GROUP: usize = 64;
        let mut with_outcomes = 0;
        // A transaction of a whole group takes about 190 packets.
        for packet in (0..).step_by(23) {
            super::claims::bulk(&place, ROWS).await;
            let link = BadLink::to(&place.database.url, Lost::Server).await;
            let operator = place.queue_on(link.url(&place.database.url), TABLE, "");
            let selected = operator.select(&operator.list(&Filter::default(), i64::MIN, 1000).await.unwrap()).await.unwrap();
            link.break_at(packet);
            let applied = operator.apply(&Action::Delete, &selected, at(0)).await;
            let left = place.session().await.number(&format!("SELECT COUNT(*) FROM {TABLE}")).await as usize;
            if !link.broke() {
                assert_eq!((applied.unwrap().len(), left), (ROWS, 0));
                break;
            }
            let (error, outcomes) = applied.unwrap_err();
            assert!(matches!(error, mailqueue::queue::Error::Unreachable { .. }), "{error}");
            assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Done), "{outcomes:?}");
            // Of one group it is not known, where the answer to its COMMIT is lost.
            let gone = ROWS - left;
            let unheard = gone.checked_sub(outcomes.len()).unwrap();
            assert!([0, GROUP, ROWS % GROUP].contains(&unheard), "{packet}: {gone}, {}", outcomes.len());
            with_outcomes += usize::from(!outcomes.is_empty());
            place.session().await.run(&format!("DELETE FROM {TABLE}; DELETE FROM mailqueue_delivery")).await.unwrap();
        }
        assert!(with_outcomes > 3, "at some packet a group was deleted before");
    }

    async fn an_answer_that_is_lost_makes_no_outcome_untrue(place: Place) {
        for action in [Action::Hold, Action::Release, Action::Retry, Action::Delete] {
            for packet in 0.. {
                let mids = place.mails(3).await;
                let operator = place.dispatcher("");
                if matches!(action, Action::Release | Action::Retry) {
                    let rows: Vec<_> = mids.iter().map(|&mid| mid.into()).collect();
                    operator.apply(&Action::Hold, &rows, at(0)).await.unwrap();
                    if matches!(action, Action::Retry) {
                        operator.apply(&Action::Release, &rows, at(1)).await.unwrap();
                    }
                }
                let link = BadLink::to(&place.database.url, Lost::Answer).await;
                let queue = place.queue_on(link.url(&place.database.url), TABLE, "");
                let selected = queue.select(&queue.list(&Filter::default(), i64::MIN, 10).await.unwrap()).await.unwrap();
                link.break_at(packet);
                let outcomes = queue.apply(&action, &selected, at(2)).await.unwrap();
                let all = mids.iter().map(|&mid| (mid, Outcome::Done)).collect::<Vec<_>>();
                assert_eq!(outcomes, all, "{action:?}, packet {packet}");
                place.session().await.run(&format!("DELETE FROM {TABLE}; DELETE FROM mailqueue_delivery")).await.unwrap();
                if !link.broke() {
                    assert!(packet > 3, "each packet was lost once: {packet}");
                    break;
                }
            }
        }
    }

    async fn a_claim_whose_answer_was_lost_is_given_back_when_the_database_is(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        let row = take_all(&queue).await.remove(1);
        queue.recover_own().await.unwrap();
        drop(row);
        let mut claimed_unheard = 0;
        for packet in 0.. {
            let link = BadLink::to(&place.database.url, Lost::Server).await;
            let queue = place.queue_on(link.url(&place.database.url), TABLE, "a");
            queue.paused().await.unwrap();
            link.break_at(packet);
            let answer = claim(&queue, &mids, at(0)).await;
            if !link.broke() {
                assert_eq!(answer.unwrap().len(), 2);
                break;
            }
            assert!(matches!(answer, Err(mailqueue::queue::Error::Unreachable { .. })), "{answer:?}");
            claimed_unheard += place.records().await;
            assert!(queue.find(i64::MIN, 10).await.is_err());
            link.heal();
            queue.sweep().await.unwrap();
            assert_eq!(find(&queue, i64::MIN, 10).await, mids);
        }
        assert!(claimed_unheard > 0, "at some packet the claim was made and not heard of");
    }
}

async fn each_packet_is_lost_once(place: &Place, lost: Lost) {
    let operator = place.dispatcher("");
    for packet in 0.. {
        let link = BadLink::to(&place.database.url, lost).await;
        let queue = place.queue_on(link.url(&place.database.url), TABLE, "a");
        queue.paused().await.unwrap();
        link.break_at(packet);
        one_round(&operator, &queue, &format!("{lost:?} {packet}")).await;
        if !link.broke() {
            assert!(packet > 15, "each packet of a round was lost once: {packet}");
            return;
        }
    }
}

/// Two mails: one is delivered at once, one is deferred, claimed when due, and delivered then.
async fn one_round(operator: &Queue, queue: &Queue, told: &str) {
    let mut mids = Vec::new();
    for number in 0..2 {
        mids.push(operator.insert(&mail(number)).await.unwrap());
    }
    let state = async |mid| operator.look(mid).await.unwrap().map(|(row, _)| row.state);
    let found = queue.find(i64::MIN, 10).await.expect(told);
    let claims = queue.claim(&found, at(0)).await.expect(told);
    assert_eq!(claims.iter().map(|claim| claim.id().mid).collect::<Vec<_>>(), mids, "{told}");
    let rows = queue.load(claims).await.expect(told);
    assert_eq!(send(queue, &rows).await, [true, true], "{told}");
    let verdicts = [delivered(), deferred(at(10))];
    let group: Vec<_> = rows.into_iter().zip(verdicts).map(|(row, verdict)| settlement(row, verdict)).collect();
    let settled = queue.settle(&group, RETRY).await.expect(told);
    assert!(settled.iter().all(|(_, settled)| *settled == Settled::Done), "{told}: {settled:?}");
    assert_eq!((state(mids[0]).await, state(mids[1]).await), (None, Some(State::Deferred)), "{told}");

    let claims = queue.claim_due(at(10), 10).await.expect(told);
    assert_eq!(claims.len(), 1, "{told}");
    assert_eq!(claims[0].history().attempts, 1, "{told}");
    let mut rows = queue.load(claims).await.expect(told);
    assert_eq!(send(queue, &rows).await, [true], "{told}");
    queue.beat().await.expect(told);
    let group = vec![settlement(rows.remove(0), delivered())];
    assert_eq!(queue.settle(&group, RETRY).await.expect(told)[0].1, Settled::Done, "{told}");
    assert_eq!(state(mids[1]).await, None, "{told}");
    assert_eq!(operator.counts(at(10)).await.unwrap().records, [], "{told}");
}

struct BadLink {
    port: u16,
    /// Packets that still pass; -1: it broke; `i64::MAX`: not to break.
    left: Arc<AtomicI64>,
}

impl BadLink {
    async fn to(server: &Url, lost: Lost) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let left = Arc::new(AtomicI64::new(i64::MAX));
        let link = Self { port: listener.local_addr().unwrap().port(), left: Arc::clone(&left) };
        let server = (server.host_str().unwrap().to_owned(), server.port().unwrap());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if matches!(lost, Lost::Server) && left.load(Ordering::SeqCst) < 0 {
                    continue;
                }
                let server = TcpStream::connect((server.0.as_str(), server.1)).await.unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&left), lost));
            }
        });
        link
    }

    fn url(&self, server: &Url) -> Url {
        let mut url = server.clone();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url
    }

    fn heal(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }

    fn break_at(&self, packet: i64) {
        self.left.store(packet, Ordering::SeqCst);
    }

    fn broke(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }
}

/// Passes bytes on until the link breaks, and that ends both sides.
async fn pass(mut client: TcpStream, mut server: TcpStream, left: Arc<AtomicI64>, lost: Lost) {
    // Each packet at once, also where the other side has not confirmed the one before it.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut question, mut answer) = (vec![0; 65_536], vec![0; 65_536]);
    let mut answer_is_lost = false;
    loop {
        tokio::select! {
            read = client.read(&mut question) => {
                let Ok(length @ 1..) = read else { return };
                let count = |left: i64| (0..i64::MAX).contains(&left).then_some(left - 1);
                // Once it has broken, the links that are made anew hold.
                let breaks = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count) == Ok(0);
                if breaks && matches!(lost, Lost::Packet) {
                    return;
                }
                answer_is_lost |= breaks;
                if server.write_all(&question[..length]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answer) => {
                let Ok(length @ 1..) = read else { return };
                if answer_is_lost || client.write_all(&answer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
