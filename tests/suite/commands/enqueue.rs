//! `mailqueue enqueue`: the columns that it writes, and what it refuses.

use super::{MAIL, enqueue, installation, queue, stderr, stdout};
use crate::support::binary::Installation;

#[tokio::test]
async fn a_mail_from_standard_input_becomes_the_columns_that_php_would_write() {
    let installation = installation().await;
    let output = enqueue(&installation, "newsletter", MAIL).await;
    assert_eq!((stdout(&output), output.status.code()), ("newsletter/1", Some(0)), "{}", stderr(&output));
    let (_, columns) = queue(&installation, "newsletter").look(1).await.expect("SQLite").expect("the row");
    let columns = columns.into_columns().expect("a small row");
    let decoded = columns.each().map(|(_, value)| value.map(decode));
    let [to, subject, body, headers, params] = decoded;
    assert_eq!(to.as_deref(), Some("anna@example.org"));
    assert_eq!(subject.as_deref(), Some("Grüße"));
    assert_eq!(body.as_deref(), Some(".Hallo\nAnna\n"));
    assert_eq!(
        headers.as_deref(),
        Some(
            "From: \"Jörg\" <joerg@example.org>\r\nCc: bea@example.org\r\nMessage-ID: <1@example.org>\r\n\
             Date: Sat, 3 Mar 2018 10:00:00 +0100\r\n"
        )
    );
    assert_eq!(params, None);
}

fn decode(base64: &[u8]) -> String {
    use base64::Engine;
    let bytes = base64::prelude::BASE64_STANDARD.decode(base64).expect("base64");
    String::from_utf8(bytes).expect("UTF-8")
}

#[tokio::test]
async fn enqueue_says_what_it_misses() {
    let installation = installation().await;
    let complaint = async |arguments: &[&str]| {
        let output = installation.run(arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        stderr(&output).to_owned()
    };
    assert_eq!(
        complaint(&["enqueue", "--to", "a@example.org", "--from", "b@example.org"]).await,
        "mailqueue: into which queue? add --queue with one of newsletter, admidio"
    );
    assert_eq!(
        complaint(&["enqueue", "--queue", "newsletter", "--to", "a@example.org"]).await,
        "mailqueue: a mail needs a sender: add --from ADDRESS, or set message.default_from in the configuration"
    );
    assert_eq!(
        complaint(&["enqueue", "--queue", "press"]).await,
        format!(
            "mailqueue: there is no queue \"press\" in {}; there is newsletter, admidio",
            installation.configuration().display()
        )
    );
    assert_eq!(
        complaint(&["enqueue", "--queue", "newsletter"]).await,
        "mailqueue: there is no mail on standard input; its headers come first"
    );
    let output = enqueue(&installation, "newsletter", "From: a@example.org\nHallo Anna\n").await;
    assert_eq!(
        stderr(&output),
        "mailqueue: line 2 of the mail is no header; write headers as NAME: VALUE, then an empty line, then the text"
    );
    let injection = "Hallo\nBcc: all@example.org";
    let arguments =
        ["enqueue", "--queue=newsletter", "--to=a@example.org", "--from=b@example.org", "--subject", injection];
    assert_eq!(
        complaint(&arguments).await,
        "mailqueue: an address or a subject must stand on one line, without control characters"
    );
    assert_eq!(stdout(&installation.run(&["list"]).await), "");
}

/// Offers a mail on standard input, and returns what was said against it. No row may come of it.
async fn refused(installation: &Installation, mail: &str) -> String {
    let output = enqueue(installation, "newsletter", mail).await;
    assert_eq!(output.status.code(), Some(2), "{mail}: {}", stdout(&output));
    assert_eq!(stdout(&installation.run(&["list", "--json"]).await), "", "{mail}");
    stderr(&output).to_owned()
}

#[tokio::test]
async fn what_could_not_be_sent_is_refused_with_the_reason_that_its_row_would_have_got() {
    let installation = installation().await;
    let text = "\nSubject: x\n\nHallo\n";
    for (headers, reason) in [
        ("From: a@example.org", "no-recipient: "),
        ("From: a@example.org\nTo: undisclosed-recipients:;", "no-recipient: "),
        ("To: b@example.org", "no-sender: "),
        ("From: nobody\nTo: b@example.org", "no-sender: "),
    ] {
        let said = refused(&installation, &format!("{headers}{text}")).await;
        assert!(said.starts_with(&format!("mailqueue: the mail could not be sent: {reason}")), "{headers}: {said}");
    }
    let said =
        refused(&installation, &format!("From: a@example.org\nTo: b@example.org, c@d\nBcc: e..f@g.org{text}")).await;
    assert!(said.starts_with("mailqueue: 2 recipients could not get the mail: c@d ("), "{said}");
    assert!(said.contains("e..f@g.org (") && said.ends_with("; correct each address, or leave it out"), "{said}");
    let configuration = std::fs::read_to_string(installation.configuration()).expect("configuration");
    std::fs::write(installation.configuration(), configuration + "[message]\nmax_size = \"1kB\"\n").expect("write");
    let large = format!("{MAIL}{}", "Hallo Anna\n".repeat(100));
    let said = refused(&installation, &large).await;
    assert!(said.starts_with("mailqueue: the mail could not be sent: too-large: "), "{said}");
    let good = enqueue(&installation, "newsletter", MAIL).await;
    assert_eq!(stdout(&good), "newsletter/1", "{}", stderr(&good));
}

#[tokio::test]
async fn a_sender_that_is_no_address_is_a_usage_error_and_an_international_domain_becomes_punycode() {
    let installation = installation().await;
    let enqueue = async |sender: &str| {
        let arguments =
            ["enqueue", "--queue=admidio", "--to=a@example.org", "--from=b@example.org", "--sender", sender];
        installation.run(&arguments).await
    };
    for bad in ["", "nobody", "a@localhost", "a..b@example.org", "a@[192.0.2.1]", "a@example.org -OQueueDirectory=/tmp"]
    {
        let output = enqueue(bad).await;
        assert_eq!(output.status.code(), Some(2), "{bad}: {}", stderr(&output));
        assert!(stderr(&output).contains("'--sender <ADDRESS>'"), "{bad}: {}", stderr(&output));
    }
    assert_eq!(stdout(&installation.run(&["list", "--json"]).await), "");
    let output = enqueue("\"a b\"@example.org").await;
    let said = "would not become the envelope sender: write --sender as in bounces@example.org";
    assert!(output.status.code() == Some(2) && stderr(&output).ends_with(said), "{}", stderr(&output));
    let output = enqueue("bounces@müller.at").await;
    assert_eq!((stdout(&output), output.status.code()), ("admidio/1", Some(0)), "{}", stderr(&output));
    let shown = installation.run(&["show", "--json", "admidio/1"]).await;
    let object: serde_json::Value = serde_json::from_str(stdout(&shown)).expect("JSON");
    assert_eq!(object["mail"]["sender"], "bounces@xn--mller-kva.at");
}
