use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

const LIMIT: Duration = Duration::from_secs(100);

/// A wire, and the peer's end of it, with this much room in between.
fn pair(room: usize) -> (Wire, DuplexStream) {
    let (ours, theirs) = duplex(room);
    (Wire::new(Box::new(ours), ([127, 0, 0, 1], 25).into(), std::sync::Arc::new(str::to_owned)), theirs)
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_a_byte_at_a_time_is_given_up_after_a_total() {
    let (mut wire, mut peer) = pair(1);
    let reader = tokio::spawn(async move {
        while peer.read_u8().await.is_ok() {
            tokio::time::sleep(LIMIT / 2).await;
        }
    });
    let begun = Instant::now();
    assert_eq!(wire.write_content(&[b'a'; 20_000], "", LIMIT).await, Written::Cut);
    assert_eq!(begun.elapsed().as_secs(), (LIMIT + Duration::from_secs(20)).as_secs());
    assert_eq!(wire.reply(LIMIT).await, Err(Cause::Timeout));
    reader.abort();
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_says_while_it_takes_nothing_buys_it_no_time() {
    let (mut wire, mut peer) = pair(10);
    let talker = tokio::spawn(async move {
        while peer.write_u8(b'2').await.is_ok() {
            tokio::time::sleep(LIMIT / 3).await;
        }
    });
    let begun = Instant::now();
    wire.write(&"RCPT TO:<a@x.test>\r\n".repeat(1_000), LIMIT).await;
    assert_eq!(begun.elapsed().as_secs(), LIMIT.as_secs());
    assert_eq!(wire.reply(LIMIT).await, Err(Cause::Timeout));
    talker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slow_peer_that_takes_enough_has_all_the_time_it_needs() {
    let (mut wire, mut peer) = pair(100_000);
    let reader = tokio::spawn(async move {
        let (mut all, mut part) = (0, vec![0; 100_000]);
        while let Ok(count @ 1..) = peer.read(&mut part).await {
            all += count;
            tokio::time::sleep(LIMIT * 9 / 10).await;
        }
        all
    });
    assert_eq!(wire.write_content(&[b'a'; 1_000_000], "", LIMIT).await, Written::Dot);
    drop(wire);
    assert_eq!(reader.await.unwrap(), 1_000_005);
}

#[tokio::test]
async fn a_peer_that_sends_without_end_while_we_write_is_given_up() {
    for (bytes, floods) in [(MAX_INPUT, false), (MAX_INPUT + 1, true)] {
        // Replies to a flight, so that each is one.
        let said = b"250 ok\r\n".repeat(bytes / 8 + 1)[..bytes].to_vec();
        let (mut wire, mut peer) = pair(4 * MAX_INPUT);
        peer.write_all(&said).await.unwrap();
        // More than fits in between, so that the peer's words are read meanwhile.
        wire.write(&"RCPT TO:<a@x.test>\r\n".repeat(1_000_000), Duration::from_millis(300)).await;
        let broken = wire.broken.clone().unwrap();
        assert_eq!(matches!(broken, Cause::Protocol(_)), floods, "{bytes}: {broken}");
    }
}

#[tokio::test]
async fn replies_to_a_flight_may_come_while_it_is_written_and_no_reply_may_come_before_the_dot() {
    let flight = "RCPT TO:<a@x.test>\r\n".repeat(1_000);
    let content = b"a line of the mail\r\n".repeat(1_000);
    for (content, ahead, written, dot_first) in
        [(None, "", true, false), (Some(&content), "", false, false), (Some(&content), flight.as_str(), true, true)]
    {
        let (mut wire, mut peer) = pair(64);
        let until = if dot_first { content.map_or(0, Vec::len) + 3 } else { 0 };
        let peer = tokio::spawn(async move {
            let mut rest = vec![0; until];
            peer.read_exact(&mut rest).await.unwrap();
            peer.write_all(b"250 ok\r\n").await.unwrap();
            tokio::task::yield_now().await;
            peer.read_to_end(&mut rest).await.map(|_| ())
        });
        match content {
            Some(content) => {
                let wanted = if written { Written::Dot } else { Written::Cut };
                assert_eq!(wire.write_content(content, ahead, LIMIT).await, wanted);
            }
            None => wire.write(&flight, LIMIT).await,
        }
        assert_eq!(wire.broken.is_none(), written, "{:?}", wire.broken);
        assert_eq!(wire.reply(LIMIT).await.unwrap().code, 250);
        drop(wire);
        peer.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn replies_that_came_before_the_end_are_read_first() {
    let (mut wire, mut peer) = pair(1_000);
    peer.write_all(b"250 one\r\n421 bye\r\n").await.unwrap();
    drop(peer);
    wire.write("DATA\r\n", LIMIT).await;
    assert_eq!(wire.reply(LIMIT).await.unwrap().code, 250);
    assert!(wire.has_input() && wire.has_stirred());
    assert_eq!(wire.reply(LIMIT).await.unwrap().code, 421);
    assert!(matches!(wire.reply(LIMIT).await, Err(Cause::Closed(_))));
}
