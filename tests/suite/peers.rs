//! The program against the smarthosts of the world: what Postfix and Exim delivered, recipient by recipient.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use mailqueue::outcome::{Reason, RecipientState, State};
use mailqueue::queue::{Listed, Queue};
use rustix::process::Signal;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::database::{self, TestDatabase};
use crate::support::house::{House, mail, row, said};
use crate::support::smarthost::{CHASQUID, Delivered, EXIM, OPENSMTPD, POSTFIX, Smarthost};

mod every;

/// A house whose mails go to a real smarthost, and addresses to which no other test sends.
struct Town {
    house: House,
    smarthost: Smarthost,
    /// Their end.
    domain: String,
}

impl Town {
    /// STARTTLS and a login, as one would configure it.
    async fn build(database: TestDatabase, smarthost: Smarthost) -> Self {
        let house = House::build(database, smarthost.port(), "", "").await;
        let tag = format!("t{:016x}", rand::random::<u64>());
        let domain = if smarthost == CHASQUID { format!("-{tag}@chasquid.example") } else { format!("@{tag}.example") };
        let town = Self { house, smarthost, domain };
        town.configure(&town.submission(smarthost.port(), "starttls"));
        town
    }

    /// The lines of `[relay]` that are right.
    fn submission(&self, port: u16, tls: &str) -> String {
        if self.smarthost == OPENSMTPD {
            return Self::in_the_clear(port);
        }
        let (ca, user, password) = (self.smarthost.ca_file(), self.smarthost.user(), self.smarthost.password_file());
        format!(
            "host = \"127.0.0.1\"\nport = {port}\ntls = \"{tls}\"\nhelo = \"test.example\"\nca_file = {ca:?}\n\
             username = \"{user}\"\npassword_file = {password:?}\n"
        )
    }

    fn in_the_clear(port: u16) -> String {
        format!("host = \"127.0.0.1\"\nport = {port}\ntls = \"none\"\nhelo = \"test.example\"\n")
    }

    /// Puts these lines in place of those in `[relay]`.
    fn configure(&self, relay: &str) {
        let file = self.house.installation.configuration();
        let text = std::fs::read_to_string(&file).expect("configuration");
        let (before, _) = text.split_once("[relay]\n").expect("[relay] is the last section");
        std::fs::write(file, format!("{before}[relay]\n{relay}")).expect("configuration");
    }

    fn address(&self, local: &str) -> String {
        // chasquid knows one user, whose mail can have a suffix.
        let known = self.smarthost == CHASQUID && !local.starts_with("refused");
        format!("{}{local}{}", if known { "known+" } else { "" }, self.domain)
    }

    /// A row to nobody but these, who do not see each other.
    async fn insert_bcc(&self, locals: impl IntoIterator<Item = String>) -> i64 {
        let bcc = locals.into_iter().map(|local| self.address(&local)).collect::<Vec<_>>().join(", ");
        let headers = format!("From: Newsletter <newsletter@partei.example.at>\r\nBcc: {bcc}\r\n");
        self.house.newsletter.insert(&row("", "Rundschreiben", "Grüße\n", &headers)).await.expect("INSERT")
    }

    async fn insert(&self, local: &str, subject: &str) -> i64 {
        self.house.newsletter.insert(&mail(&self.address(local), subject)).await.expect("INSERT")
    }

    /// One pass that is to end with this status; what it wrote.
    async fn once(&self, status: i32) -> String {
        let output = self.house.run(&["--log-level", "info", "once"]).await;
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        said(&output)
    }

    /// The replies that one pass heard.
    async fn dialogue(&self, status: i32) -> String {
        let output = self.house.run(&["--log-level", "info,mailqueue::relay=debug", "once"]).await;
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        said(&output)
    }

    async fn row(&self, mid: i64) -> Listed {
        self.house.row(&self.house.newsletter, mid).await.expect("the row stands")
    }

    async fn is_empty(&self) -> bool {
        self.house.rows(&self.house.newsletter).await.is_empty()
    }

    async fn assert_untouched(&self) {
        let rows = self.house.rows(&self.house.newsletter).await;
        assert!(!rows.is_empty());
        assert!(rows.iter().all(|row| row.state == State::Waiting && row.history.attempts == 0), "{rows:?}");
    }

    /// Makes what is deferred due now, as time would, and unlike `retry` asks no refused recipient again.
    async fn let_time_pass(&self) {
        let mut connection = self.house.connect().await;
        let due = "UPDATE mailqueue_delivery SET next_attempt = 0 WHERE state = 'deferred'";
        sqlx::query(due).execute(&mut connection).await.expect("UPDATE");
    }

    /// What everybody got, when it is clear that nothing more comes: a last mail has overtaken nothing.
    async fn delivered(&self, count: usize) -> Vec<Delivered> {
        self.house.admidio.insert(&mail(&self.address("zz-last"), "last")).await.expect("INSERT");
        self.house.run(&["once"]).await;
        let mut delivered = self.smarthost.delivered_to(&self.domain, count + 1).await;
        delivered.retain(|mail| mail.recipient != self.address("zz-last"));
        delivered
    }

    async fn assert_once_each(&self, locals: impl IntoIterator<Item = String>) -> Vec<Delivered> {
        let mut expected: Vec<_> = locals.into_iter().map(|local| self.address(&local)).collect();
        expected.sort();
        let delivered = self.delivered(expected.len()).await;
        assert_eq!(delivered.iter().map(|mail| mail.recipient.clone()).collect::<Vec<_>>(), expected);
        delivered
    }
}

fn numbered(prefix: &'static str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("{prefix}{n:03}"))
}

/// The transactions in which mails came, by the smarthost's own id in its `Received`.
fn transactions(delivered: &[Delivered]) -> usize {
    let id = |mail: &Delivered| {
        let mut words = mail.content.split_whitespace().skip_while(|word| *word != "id").skip(1);
        words.next().expect("id").to_owned()
    };
    delivered.iter().map(id).collect::<HashSet<_>>().len()
}

fn header<'a>(mail: &'a Delivered, name: &str) -> &'a str {
    let line = mail.content.lines().find(|line| line.starts_with(name));
    line.unwrap_or_else(|| panic!("no {name} in {}", mail.content))
}

fn recipient_states(row: &Listed) -> HashMap<RecipientState, usize> {
    let mut states = HashMap::new();
    for recipient in &row.history.recipients {
        *states.entry(recipient.state).or_default() += 1;
    }
    states
}

/// A link to a smarthost that can be cut, under way too.
struct Link {
    address: SocketAddr,
    target: u16,
    up: Option<(Arc<Notify>, JoinHandle<()>)>,
}

impl Link {
    async fn to(target: u16) -> Self {
        let mut link = Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), target, up: None };
        link.restore().await;
        link
    }

    async fn restore(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the link's port");
        self.address = listener.local_addr().expect("address");
        let (cut, target) = (Arc::new(Notify::new()), self.target);
        let until = cut.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    () = until.notified() => break,
                    accepted = listener.accept() => {
                        let (mut near, _) = accepted.expect("accept");
                        connections.spawn(async move {
                            let mut far = TcpStream::connect(("127.0.0.1", target)).await?;
                            copy_bidirectional(&mut near, &mut far).await
                        });
                    }
                }
            }
            drop(listener);
            connections.shutdown().await;
        });
        self.up = Some((cut, task));
    }

    /// When this returns nobody listens, and all connections are gone.
    async fn cut(&mut self) {
        let (cut, task) = self.up.take().expect("the link is up");
        cut.notify_one();
        task.await.expect("link");
    }
}

async fn count(queue: &Queue) -> usize {
    queue.list(&Default::default(), i64::MIN, 1_000_000).await.expect("list").len()
}

/// What both have in common.
macro_rules! on {
    ($smarthost:ident: $($name:ident),* $(,)?) => {
        // With threads, because looking through the Maildir must not keep a link from carrying bytes.
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::$smarthost).await })*
    };
}

async fn mails_go_out_over_starttls_with_the_password_from_its_file(smarthost: Smarthost) {
    let town = Town::build(database::mariadb().await, smarthost).await;
    for local in numbered("n", 60) {
        town.insert(&local, "Grüße an alle").await;
    }
    town.once(0).await;
    assert!(town.is_empty().await);
    for mail in town.assert_once_each(numbered("n", 60)).await {
        assert_eq!(mail.sender, "newsletter@partei.example.at");
        assert_eq!(header(&mail, "Subject: "), "Subject: =?utf-8?b?R3LDvMOfZQ==?= an alle");
        assert!(mail.content.contains("with ESMTPSA") || mail.content.contains("with esmtpsa"), "{}", mail.content);
    }
}

async fn a_wrong_authority_is_the_relays_trouble_and_costs_no_attempt(smarthost: Smarthost) {
    let town = Town::build(database::sqlite(), smarthost).await;
    for local in numbered("n", 5) {
        town.insert(&local, "x").await;
    }
    let right = town.submission(smarthost.port(), "starttls");
    let other = if smarthost.ca_file() == POSTFIX.ca_file() { EXIM } else { POSTFIX };
    town.configure(&right.replace(&format!("{:?}", smarthost.ca_file()), &format!("{:?}", other.ca_file())));
    let words = town.once(69).await;
    assert!(words.contains("certificate") && words.contains("ca_file"), "{words}");
    town.assert_untouched().await;

    town.configure(&right);
    town.once(0).await;
    town.assert_once_each(numbered("n", 5)).await;
}

async fn a_wrong_password_is_the_relays_trouble_until_it_is_right_without_a_restart(smarthost: Smarthost) {
    let town = Town::build(database::sqlite(), smarthost).await;
    for local in numbered("n", 30) {
        town.insert(&local, "x").await;
    }
    let password = town.house.installation.path().join("password");
    write_secret(&password, "certainly not this one");
    let right = town.submission(smarthost.port(), "starttls");
    town.configure(&right.replace(&format!("{:?}", smarthost.password_file()), &format!("{password:?}")));
    let words = town.once(69).await;
    assert!(words.contains("535") && words.contains("auth"), "{words}");
    assert!(!words.contains("certainly not"), "{words}");
    town.assert_untouched().await;

    let daemon = town.house.start();
    daemon.wait_for_line("relay down").await;
    write_secret(&password, &std::fs::read_to_string(smarthost.password_file()).unwrap());
    daemon.wait_for_line("relay up").await;
    town.smarthost.delivered_to(&town.domain, 30).await;
    daemon.signal(Signal::TERM);
    let (status, lines) = daemon.wait().await;
    assert!(status.success(), "{}", lines.join("\n"));
    assert!(town.is_empty().await);
    town.assert_once_each(numbered("n", 30)).await;
}

fn write_secret(file: &std::path::Path, secret: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(file, secret).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn refused_and_deferred_recipients_do_not_stop_the_others(smarthost: Smarthost) {
    let town = Town::build(database::sqlite(), smarthost).await;
    let odd = ["refused1", "deferred1", "refused2"].map(String::from);
    let mid = town.insert_bcc(numbered("b", 9).chain(odd)).await;
    for pass in 1..=3 {
        town.once(1).await;
        let row = town.row(mid).await;
        assert_eq!((row.state, row.reason, row.history.attempts), (State::Deferred, Some(Reason::Refused), pass));
        town.let_time_pass().await;
    }
    let row = town.row(mid).await;
    let states = [(RecipientState::Accepted, 9), (RecipientState::Refused, 2), (RecipientState::Deferred, 1)];
    assert_eq!(recipient_states(&row), HashMap::from(states));
    let reply = |local: &str| {
        let known = row.history.recipients.iter().find(|known| known.address == town.address(local));
        known.and_then(|known| known.reply.clone()).expect("reply")
    };
    assert!(reply("refused2").starts_with("550 5.1.1 "), "{}", reply("refused2"));
    assert!(reply("deferred1").starts_with("450 4.2.1 "), "{}", reply("deferred1"));
    town.assert_once_each(numbered("b", 9)).await;
}

async fn fifty_bcc_in_one_transaction_are_split_where_the_smarthost_wants_it(smarthost: Smarthost) {
    let town = Town::build(database::mariadb().await, smarthost).await;
    let relay = town.submission(smarthost.port(), "starttls");
    town.configure(&format!("{relay}recipients_per_message = 50\n"));
    town.insert_bcc(numbered("b", 50)).await;
    let dialogue = town.dialogue(0).await;
    assert!(dialogue.contains("S: 452"), "the smarthost itself refuses the seventeenth");
    assert!(town.is_empty().await);
    let delivered = town.assert_once_each(numbered("b", 50)).await;
    assert_eq!(transactions(&delivered), 4, "16, 16, 16 and 2");
    let ids: HashSet<_> = delivered.iter().map(|mail| header(mail, "Message-ID: ")).collect();
    assert_eq!(ids.len(), 1, "one mail");
}

async fn fifty_bcc_at_sixteen_a_message_never_meet_the_smarthosts_limit(smarthost: Smarthost) {
    let town = Town::build(database::sqlite(), smarthost).await;
    town.insert_bcc(numbered("b", 50)).await;
    let dialogue = town.dialogue(0).await;
    assert!(dialogue.contains("S: 354") && !dialogue.contains("S: 452"), "{dialogue}");
    let delivered = town.assert_once_each(numbered("b", 50)).await;
    assert_eq!(transactions(&delivered), 4);
}

async fn a_mail_over_the_announced_size_is_too_large_and_stops_no_other(smarthost: Smarthost) {
    let town = Town::build(database::sqlite(), smarthost).await;
    let line = "0123456789 ".repeat(6) + "\n";
    let body = line.repeat(smarthost.size_limit() / line.len() + 1);
    let headers = "From: Newsletter <newsletter@partei.example.at>\r\n";
    let large = row(&town.address("large"), "large", &body, headers);
    let mid = town.house.newsletter.insert(&large).await.expect("INSERT");
    town.insert("small", "small").await;
    town.once(1).await;
    let row = town.row(mid).await;
    assert_eq!((row.state, row.reason), (State::Failed, Some(Reason::TooLarge)), "{row:?}");
    let words = row.last_reply.expect("words");
    assert!(words.contains(&smarthost.size_limit().to_string()), "{words}");
    town.assert_once_each(["small".to_owned()]).await;
}

async fn a_link_that_is_cut_under_way_loses_nothing_and_repeats_only_what_it_says(smarthost: Smarthost) {
    let town = Town::build(database::mariadb().await, smarthost).await;
    let mut link = Link::to(smarthost.port()).await;
    town.configure(&(town.submission(link.address.port(), "starttls") + "rate = \"200/s\"\n"));
    for local in numbered("n", 150) {
        town.insert(&local, "x").await;
    }
    let daemon = town.house.start();
    for progress in [20, 60] {
        town.smarthost.delivered_to(&town.domain, progress).await;
        link.cut().await;
        daemon.wait_for_line("relay down").await;
        link.restore().await;
        daemon.wait_for_line("relay up").await;
    }
    while count(&town.house.newsletter).await > 0 {
        town.house.let_time_pass(&town.house.newsletter).await;
        daemon.signal(Signal::USR1);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    daemon.signal(Signal::TERM);
    let (status, lines) = daemon.wait().await;
    assert!(status.success(), "{}", lines.join("\n"));

    let mut copies: HashMap<String, Vec<Delivered>> = HashMap::new();
    for mail in town.delivered(150).await {
        copies.entry(mail.recipient.clone()).or_default().push(mail);
    }
    assert_eq!(copies.len(), 150, "none is lost");
    for (recipient, copies) in copies.iter().filter(|(_, copies)| copies.len() > 1) {
        assert_eq!(copies.len(), 2, "{recipient}");
        assert_eq!(header(&copies[0], "Message-ID: "), header(&copies[1], "Message-ID: "));
        let said = lines.iter().any(|line| line.contains("outcome-unknown") && line.contains(recipient));
        assert!(said, "{recipient} has it twice, and nobody was told");
    }
}

mod postfix {
    use super::*;

    on!(POSTFIX:
        mails_go_out_over_starttls_with_the_password_from_its_file,
        a_wrong_authority_is_the_relays_trouble_and_costs_no_attempt,
        a_wrong_password_is_the_relays_trouble_until_it_is_right_without_a_restart,
        refused_and_deferred_recipients_do_not_stop_the_others,
        fifty_bcc_in_one_transaction_are_split_where_the_smarthost_wants_it,
        fifty_bcc_at_sixteen_a_message_never_meet_the_smarthosts_limit,
        a_mail_over_the_announced_size_is_too_large_and_stops_no_other,
        a_link_that_is_cut_under_way_loses_nothing_and_repeats_only_what_it_says,
    );

    #[tokio::test]
    async fn mails_go_out_over_implicit_tls() {
        let town = Town::build(database::sqlite(), POSTFIX).await;
        town.configure(&town.submission(POSTFIX.implicit_tls_port(), "implicit"));
        for local in numbered("n", 20) {
            town.insert(&local, "x").await;
        }
        town.once(0).await;
        town.assert_once_each(numbered("n", 20)).await;
    }
}

mod exim {
    use super::*;

    on!(EXIM:
        mails_go_out_over_starttls_with_the_password_from_its_file,
        a_wrong_authority_is_the_relays_trouble_and_costs_no_attempt,
        a_wrong_password_is_the_relays_trouble_until_it_is_right_without_a_restart,
        refused_and_deferred_recipients_do_not_stop_the_others,
        fifty_bcc_in_one_transaction_are_split_where_the_smarthost_wants_it,
        fifty_bcc_at_sixteen_a_message_never_meet_the_smarthosts_limit,
        a_mail_over_the_announced_size_is_too_large_and_stops_no_other,
        a_link_that_is_cut_under_way_loses_nothing_and_repeats_only_what_it_says,
    );

    #[tokio::test]
    async fn a_mail_that_is_refused_as_a_whole_behind_its_dot_has_failed_and_one_put_off_waits() {
        let town = Town::build(database::sqlite(), EXIM).await;
        let refused = town.insert("a", "refuse this").await;
        let deferred = town.insert("b", "defer this").await;
        for local in numbered("n", 20) {
            town.insert(&local, "x").await;
        }
        let words = town.once(1).await;
        assert!(words.contains("554 5.6.0") && words.contains("451 4.3.0"), "{words}");
        let (refused, deferred) = (town.row(refused).await, town.row(deferred).await);
        assert_eq!((refused.state, refused.reason), (State::Failed, Some(Reason::Refused)));
        assert_eq!(deferred.state, State::Deferred);
        town.assert_once_each(numbered("n", 20)).await;
    }

    /// Five refusals, then 421: the sixth refused one and those behind it were not heard.
    #[tokio::test]
    async fn a_connection_that_ends_after_too_many_errors_keeps_its_answers_and_the_rest_follows() {
        let town = Town::build(database::sqlite(), EXIM).await;
        let mid = town.insert_bcc(numbered("a", 2).chain(numbered("refused", 8)).chain(numbered("b", 2))).await;
        town.once(1).await;
        let row = town.row(mid).await;
        assert_eq!(row.state, State::Deferred);
        assert_eq!(recipient_states(&row)[&RecipientState::Refused], 5);
        for local in numbered("n", 10) {
            town.insert(&local, "x").await;
        }
        town.let_time_pass().await;
        town.once(1).await;
        let row = town.row(mid).await;
        assert_eq!((row.state, row.reason), (State::Failed, Some(Reason::Refused)));
        let states = [(RecipientState::Accepted, 4), (RecipientState::Refused, 8)];
        assert_eq!(recipient_states(&row), HashMap::from(states));
        town.assert_once_each(numbered("a", 2).chain(numbered("b", 2)).chain(numbered("n", 10))).await;
    }
}
