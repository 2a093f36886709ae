//! Names and addresses of hosts: the smarthost, our own, and where monitoring listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use super::reader::Objection;

/// The smarthost as a resolver and TLS take it: a name, in punycode where it has letters beyond ASCII, or an IP address,
/// an IPv6 address without the brackets in which it may be written. No MX record is looked up, so that brackets around a
/// name, with which Postfix says the same, mean nothing here.
pub fn smarthost(text: &str) -> Result<String, Objection> {
    if let Ok(address) = unbracketed(text).unwrap_or(text).parse::<IpAddr>()
        && (address.is_ipv6() || unbracketed(text).is_none())
    {
        return Ok(address.to_string());
    }
    if let Some((host, port)) = with_port(text) {
        let remedy = format!("write host = \"{host}\" and on a line of its own port = {port}");
        return Err((format!("\"{text}\" has a port in it"), remedy));
    }
    let name = if text.is_ascii() { is_name(text).then(|| text.to_owned()) } else { punycode(text) };
    name.ok_or_else(|| {
        let remedy = if unbracketed(text).is_some() {
            "leave the brackets out: only an IPv6 address stands in them"
        } else {
            "write it as in mail.example.org, without port or scheme"
        };
        (format!("\"{text}\" is no host's name"), remedy.to_owned())
    })
}

/// The name in EHLO: a domain, in punycode, or an address literal (RFC 5321 §4.1.4, §4.1.3). It need not have a dot,
/// since a host may know no better name of itself; `check` warns of that.
pub fn helo(text: &str) -> Result<String, Objection> {
    let remedy = match text.parse::<IpAddr>().or_else(|_| unbracketed(text).unwrap_or_default().parse()) {
        Ok(IpAddr::V4(_)) if unbracketed(text).is_some() => return Ok(text.to_owned()),
        Ok(IpAddr::V4(address)) => format!("write an address in brackets: [{address}]"),
        Ok(IpAddr::V6(address)) => format!("write an IPv6 address as [IPv6:{address}]"),
        Err(_) if unbracketed(text).is_some_and(is_tagged_ipv6) => return Ok(text.to_owned()),
        Err(_) => match punycode(text).filter(|name| !name.rsplit('.').next().is_none_or(is_number)) {
            Some(name) => return Ok(name),
            None => "write this host's full name, as in mail.example.org, or an address as in [192.0.2.1] or \
                [IPv6:2001:db8::1]"
                .to_owned(),
        },
    };
    Err((format!("\"{text}\" is neither a domain nor an address literal"), remedy))
}

/// This host's name for EHLO where the configuration has none.
pub fn own_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    helo(&name).unwrap_or_else(|_| "localhost".to_owned())
}

/// An IP address and a port.
pub fn listen(text: &str) -> Result<SocketAddr, Objection> {
    text.parse()
        .map_err(|_| (format!("\"{text}\" is no address with a port"), "write it as in 127.0.0.1:9925".to_owned()))
}

/// A name or address that cannot be anywhere else than on this host.
pub fn is_loopback(host: &str) -> bool {
    let bare = unbracketed(host).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn unbracketed(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

/// `IPv6:2001:db8::1`, as between the brackets of an address literal (RFC 5321 §4.1.3).
fn is_tagged_ipv6(text: &str) -> bool {
    let tag = text.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPv6:"));
    tag.is_some_and(|tag| text[tag.len()..].parse::<Ipv6Addr>().is_ok())
}

fn is_number(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_digit())
}

/// `mail.example.org:25` and `[2001:db8::1]:25`, taken apart.
fn with_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let bare = unbracketed(host).unwrap_or(host);
    let fits = bare.parse::<Ipv6Addr>().is_ok() || bare.parse::<Ipv4Addr>().is_ok() || is_name(bare);
    fits.then_some((bare, port))
}

/// A name that a resolver takes: the underscores of container networks and the root's dot included, which are no part
/// of a host's name on the Internet (RFC 1123 §2.1).
fn is_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// A domain of letters, digits and hyphens (RFC 5321 §4.1.2), internationalised ones in their ASCII form (RFC 5890); `None`
/// if it is none.
fn punycode(text: &str) -> Option<String> {
    let domain =
        Uts46::new().to_ascii(text.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast, DnsLength::Verify);
    domain.ok().map(|domain| domain.into_owned())
}
