//! A database's URL, taken apart before variables are put in, so that a password with `@` in it needs no care.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::Url;

use super::reader::Objection;
use crate::queue::{Database, Password};
use crate::secret;

/// Reads `mysql:`, `postgres:` and `sqlite:` URLs. The password is left as it is: it is put in when it is used.
pub fn database(text: &str, password_file: Option<PathBuf>) -> Result<Database, Objection> {
    let remedy =
        || "write mysql://USER@HOST/DATABASE, postgres://USER@HOST/DATABASE or sqlite:/absolute/path".to_owned();
    let mut url = Url::parse(text).map_err(|_| ("this is no URL of a database".to_owned(), remedy()))?;
    let password = match (url.password(), password_file) {
        (Some(_), Some(_)) => {
            let what = "there is a password in the URL and a password_file as well".to_owned();
            return Err((what, "keep one of them".to_owned()));
        }
        (Some(encoded), None) => Some(Password::Value(decoded(encoded)?)),
        (None, file) => file.map(Password::File),
    };
    if url.query_pairs().any(|(name, _)| name == "password") {
        let remedy = "write it behind the user, as in mysql://USER:PASSWORD@HOST/DATABASE, or name a password_file";
        return Err((
            "there is a password behind the URL's `?`, where logs would show it".to_owned(),
            remedy.to_owned(),
        ));
    }
    match url.scheme() {
        "sqlite" => {
            if url.cannot_be_a_base() || url.host_str().is_some_and(|host| !host.is_empty()) {
                return Err(("the file's path is not absolute".to_owned(), "write sqlite:/absolute/path".to_owned()));
            }
        }
        "mysql" | "mariadb" | "postgres" | "postgresql" => server(&mut url, &remedy)?,
        other => return Err((format!("{other}: is no database that mailqueue knows"), remedy())),
    }
    put_in(&mut url)?;
    Ok(Database { url, password })
}

fn server(url: &mut Url, remedy: &impl Fn() -> String) -> Result<(), Objection> {
    let scheme = if matches!(url.scheme(), "mysql" | "mariadb") { "mysql" } else { "postgres" };
    let refused = |()| ("this is no URL of a database".to_owned(), remedy());
    url.set_scheme(scheme).map_err(refused)?;
    if url.cannot_be_a_base() || url.host_str().is_none_or(str::is_empty) {
        return Err(("the URL names no host".to_owned(), remedy()));
    }
    if url.path().trim_matches('/').is_empty() {
        return Err(("the URL names no database".to_owned(), remedy()));
    }
    url.set_password(None).map_err(refused)
}

/// Puts environment variables into user, host, path and query.
fn put_in(url: &mut Url) -> Result<(), Objection> {
    let refused =
        |what: &str| (format!("the URL's {what} does not fit into a URL"), "look at what its variable holds".into());
    let user = expanded(url.username())?;
    if user != url.username() {
        url.set_username(&user).map_err(|()| refused("user"))?;
    }
    if let Some(host) = url.host_str().map(str::to_owned).filter(|host| host.contains("${") || host.contains("$%7B")) {
        let host = expanded(&host)?;
        // In a URL an IPv6 address stands in brackets (RFC 3986 §3.2.2), in a variable often without.
        let host = if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host };
        url.set_host(Some(&host)).map_err(|_| refused("host"))?;
    }
    if url.path().contains("$%7B") {
        let path = expanded(url.path())?;
        url.set_path(&path);
    }
    if url.query().is_some_and(|query| query.contains("${") || query.contains("$%7B")) {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let mut query = url.query_pairs_mut();
        query.clear();
        for (name, value) in pairs {
            let value = secret::expand(&value).map_err(|error| objection(&error))?;
            query.append_pair(&name, &value);
        }
    }
    Ok(())
}

fn expanded(encoded: &str) -> Result<String, Objection> {
    secret::expand(&decoded(encoded)?).map_err(|error| objection(&error))
}

fn decoded(encoded: &str) -> Result<String, Objection> {
    match percent_decode_str(encoded).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(("the URL holds something that is not UTF-8".to_owned(), "correct what follows a %".to_owned())),
    }
}

fn objection(error: &secret::Variable) -> Objection {
    super::reader::two_halves(&error.to_string())
}
