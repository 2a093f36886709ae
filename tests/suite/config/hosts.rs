//! Hosts and addresses in the configuration: what is taken, and how it is used.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use mailqueue::config::Config;

use super::{SHORTEST, mailqueue, parse, stderr};

#[test]
fn international_domains_of_configured_addresses_and_of_helo_become_punycode() {
    let config = parse(&format!(
        "{SHORTEST}\nhelo = \"größe.example.at\"\n[message]\ndefault_from = \"noreply@müller.at\"\n\
         envelope_from = \"bounces@MÜLLER.at\"\n[notify]\nto = \"technik@müller.at\"\n"
    ));
    assert_eq!(config.relay.helo, "xn--gre-6ka8i.example.at");
    let text = |address: Option<mailqueue::mail::Address>| address.map(|address| address.to_string());
    assert_eq!(text(config.message.default_from).as_deref(), Some("noreply@xn--mller-kva.at"));
    assert_eq!(text(config.message.envelope_from).as_deref(), Some("bounces@xn--mller-kva.at"));
    assert_eq!(text(config.notify).as_deref(), Some("technik@xn--mller-kva.at"));
}

#[test]
fn helo_is_a_domain_or_an_address_literal() {
    let with = |helo: &str| {
        let text = format!("{SHORTEST}\nhelo = \"{helo}\"\n");
        Config::parse(Path::new("test.toml"), &text).map(|config| config.relay.helo).map_err(|error| error.to_string())
    };
    for good in ["mail.example.org", "mail", "a-1.b--c.example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "[ipv6:::1]"] {
        assert_eq!(with(good).as_deref(), Ok(good));
    }
    for (bad, remedy) in [
        ("192.0.2.1", "write an address in brackets: [192.0.2.1]"),
        ("::1", "write an IPv6 address as [IPv6:::1]"),
        ("[2001:db8::1]", "write an IPv6 address as [IPv6:2001:db8::1]"),
        ("[IPv6:192.0.2.1]", "write this host's full name"),
        ("[mail.example.org]", "write this host's full name"),
        ("[192.0.2]", "write this host's full name"),
        ("192.0.2.300", "write this host's full name"),
        ("mail_1.example.org", "write this host's full name"),
        ("-mail.example.org", "write this host's full name"),
        ("mail..example.org", "write this host's full name"),
        ("mail.example.org.", "write this host's full name"),
        ("mail.example.org:25", "write this host's full name"),
        ("", "write this host's full name"),
        (&format!("{}.example.org", "a".repeat(64)), "write this host's full name"),
    ] {
        let error = with(bad).expect_err(bad);
        let expected =
            format!("test.toml:13: relay.helo: \"{bad}\" is neither a domain nor an address literal; {remedy}");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn the_smarthost_is_a_name_or_an_address_and_its_port_stands_elsewhere() {
    let with = |host: &str| {
        let text = SHORTEST.replace("globalpirates.net", host);
        Config::parse(Path::new("test.toml"), &text).map(|config| config.relay.host).map_err(|error| error.to_string())
    };
    for (written, dialled) in [
        ("mail.example.org", "mail.example.org"),
        ("mail.example.org.", "mail.example.org."),
        ("smtp_relay", "smtp_relay"),
        ("größe.example.at", "xn--gre-6ka8i.example.at"),
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
    ] {
        assert_eq!(with(written).as_deref(), Ok(dialled));
    }
    for (bad, host, port) in [
        ("mail.example.org:25", "mail.example.org", 25),
        ("[mail.example.org]:587", "mail.example.org", 587),
        ("192.0.2.1:2525", "192.0.2.1", 2525),
        ("[::1]:25", "::1", 25),
    ] {
        let expected = format!(
            "test.toml:11: relay.host: \"{bad}\" has a port in it; \
             write host = \"{host}\" and on a line of its own port = {port}"
        );
        assert_eq!(with(bad), Err(expected));
    }
    for bad in
        ["", "a b", "smtp://mail.example.org:25", "mail.example.org:smtp", "mail..org", "[mail.example.org]", "a\\nb"]
    {
        assert!(with(bad).expect_err(bad).contains("is no host's name; "), "{bad}");
    }
}

/// Runs `list` with this database; `PORT` in its URL is that of a server on `host` that offers no TLS. Returns whether
/// the program sent what comes after the question for TLS.
fn goes_on_without_tls(host: &str, url: &str, variable: &str) -> bool {
    let listener = TcpListener::bind((host, 0)).expect("a port");
    let port = listener.local_addr().expect("address").port().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        // SSLRequest of PostgreSQL, and its answer for "no".
        stream.read_exact(&mut [0; 8]).expect("a request");
        stream.write_all(b"N").expect("answer");
        stream.read(&mut [0; 8]).is_ok_and(|bytes| bytes > 0)
    });
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("mailqueue.toml");
    let url = url.replace("PORT", &port);
    std::fs::write(&file, SHORTEST.replace("mysql://mailqueue@db.example.org/ppoe_api_data", &url)).expect("write");
    let mut command = mailqueue();
    command.env("MAILQUEUE_TEST_HOST", variable).args(["list", "--queue", "newsletter", "--config"]).arg(&file);
    let output = command.output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(69), "{url}: {}", stderr(&output));
    server.join().expect("the server was reached")
}

#[test]
fn a_database_is_reached_by_its_ipv6_address_and_over_verified_tls_where_that_is_not_loopback() {
    for (host, url, variable, expected) in [
        ("::1", "postgres://mailqueue@[::1]:PORT/news", "", true),
        ("::1", "postgres://mailqueue@${MAILQUEUE_TEST_HOST}:PORT/news", "::1", true),
        ("::1", "postgres://mailqueue@${MAILQUEUE_TEST_HOST}:PORT/news", "[::1]", true),
        // Linux takes the unspecified address for this host, but it is none of loopback.
        ("::1", "postgres://mailqueue@[::]:PORT/news", "", false),
        ("127.0.0.1", "postgres://mailqueue@127.0.0.1:PORT/news", "", true),
        ("127.0.0.1", "postgres://mailqueue@localhost:PORT/news?host=0.0.0.0", "", false),
    ] {
        assert_eq!(goes_on_without_tls(host, url, variable), expected, "{url}");
    }
}

#[test]
fn mysql_too_is_dialled_at_an_ipv6_address() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("mailqueue.toml");
    let listener = TcpListener::bind("[::1]:0").expect("a port");
    let url = format!("mysql://mailqueue@[::1]:{}/news", listener.local_addr().expect("address").port());
    std::fs::write(&file, SHORTEST.replace("mysql://mailqueue@db.example.org/ppoe_api_data", &url)).expect("write");
    let server = std::thread::spawn(move || listener.accept().map(drop).expect("a connection"));
    let output = mailqueue().args(["list", "--queue", "newsletter", "--config"]).arg(&file).output().expect("it runs");
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    server.join().expect("the server was reached");
}

#[test]
fn an_empty_variable_in_a_password_is_an_error_when_it_is_used() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("mailqueue.toml");
    for (old, new) in [
        ("mysql://mailqueue@", "mysql://mailqueue:${MAILQUEUE_TEST_EMPTY}@"),
        ("ppoe_api_data\"", "ppoe_api_data\"\npassword_file = \"${MAILQUEUE_TEST_EMPTY}/newsletter\""),
    ] {
        std::fs::write(&file, SHORTEST.replacen(old, new, 1)).expect("write");
        let output = mailqueue().args(["list", "--queue=newsletter", "--config"]).arg(&file).output().expect("it runs");
        assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("variable MAILQUEUE_TEST_EMPTY is empty: give it a value"),
            "{}",
            stderr(&output)
        );
    }
}
