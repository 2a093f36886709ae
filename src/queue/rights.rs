//! The rights that we have in a database, as the database says them.

use super::db::connection::Connection;
use super::db::error::Failure;
use super::db::{mysql, postgres};

/// Rights on tables.
pub(super) struct Rights {
    /// Right, and pattern of the tables.
    granted: Vec<(String, Tables)>,
    /// To whom a GRANT would go.
    pub grantee: String,
    /// There may be more, through roles.
    pub unsure: bool,
}

enum Tables {
    All,
    One(String),
}

impl Rights {
    pub(super) fn allow(&self, right: &str, table: &str) -> bool {
        self.on(table).any(|granted| granted == right || granted == "ALL PRIVILEGES")
    }

    /// The rights that are granted on the table and not needed.
    pub(super) fn beyond(&self, needed: &[&str], table: &str) -> Vec<String> {
        let mut beyond: Vec<_> =
            self.on(table).filter(|right| !needed.contains(right) && *right != "USAGE").map(str::to_owned).collect();
        beyond.sort();
        beyond.dedup();
        beyond
    }

    fn on<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a str> {
        self.granted.iter().filter_map(move |(right, tables)| match tables {
            Tables::All => Some(right.as_str()),
            Tables::One(name) => (name == table).then_some(right.as_str()),
        })
    }

    pub(super) async fn of_mysql(connection: &mut Connection) -> Result<Self, Failure> {
        let here = connection.fetch("SELECT DATABASE(), CURRENT_USER()", Vec::new()).await?;
        let (database, grantee) = match here.first() {
            Some(line) => (line.text(0)?.unwrap_or_default(), line.required_text(1)?),
            None => Default::default(),
        };
        // As a GRANT wants it: 'user'@'host'.
        let grantee = match grantee.rsplit_once('@') {
            Some((user, host)) => format!("'{user}'@'{host}'"),
            None => grantee,
        };
        let mut rights = Self { granted: Vec::new(), grantee, unsure: false };
        let mut lines = connection.fetch(mysql::GRANTS, Vec::new()).await?;
        // What everybody may, which only MariaDB 10.11 and newer know.
        match connection.fetch("SHOW GRANTS FOR PUBLIC", Vec::new()).await {
            Ok(public) => lines.extend(public),
            Err(failure) if failure.ends_connection() => return Err(failure),
            Err(_) => {}
        }
        for line in lines {
            rights.read_grant(&line.required_text(0)?, &database);
        }
        Ok(rights)
    }

    /// ``GRANT SELECT, DELETE ON `database`.`table` TO …``, as SHOW GRANTS writes it.
    fn read_grant(&mut self, grant: &str, database: &str) {
        let Some(grant) = grant.strip_prefix("GRANT ") else { return };
        let Some((granted, rest)) = grant.split_once(" ON ") else {
            // A role.
            self.unsure = true;
            return;
        };
        let Some((scope, _)) = rest.split_once(" TO ") else { return };
        let scope = scope.trim_start_matches("TABLE ");
        let Some((on_database, on_table)) = scope.rsplit_once('.') else { return };
        let plain = |name: &str| name.trim_matches('`').to_owned();
        if on_database != "*" && !matches_pattern(&plain(on_database), database) {
            return;
        }
        let mut depth = 0;
        for right in granted.split(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ',' && depth == 0
        }) {
            // On single columns: not what is wanted, and not what can do harm.
            if right.contains('(') {
                continue;
            }
            let tables = if on_table == "*" { Tables::All } else { Tables::One(plain(on_table)) };
            self.granted.push((right.trim().to_owned(), tables));
        }
    }

    pub(super) async fn of_postgres(connection: &mut Connection, ours: &[&str], theirs: &str) -> Result<Self, Failure> {
        let whoami = connection.fetch("SELECT quote_ident(current_user)::text", Vec::new()).await?;
        let grantee = whoami.first().map(|line| line.required_text(0)).transpose()?.unwrap_or_default();
        let mut rights = Self { granted: Vec::new(), grantee, unsure: false };
        for &table in ours.iter().chain([&theirs]) {
            for line in connection.fetch(postgres::GRANTS, vec![table.into(), table.into()]).await? {
                rights.granted.push((line.required_text(0)?, Tables::One(table.to_owned())));
            }
        }
        Ok(rights)
    }
}

/// MySQL's patterns for database names: `%` for any characters, `_` for one, `\` before either for itself.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let mut pattern = pattern.chars();
    let Some(first) = pattern.next() else { return name.is_empty() };
    let rest = pattern.as_str();
    let mut chars = name.chars();
    match first {
        '%' => (0..=name.len()).filter(|&at| name.is_char_boundary(at)).any(|at| matches_pattern(rest, &name[at..])),
        '_' => chars.next().is_some() && matches_pattern(rest, chars.as_str()),
        '\\' if !rest.is_empty() => {
            let escaped = pattern.next();
            chars.next() == escaped && matches_pattern(pattern.as_str(), chars.as_str())
        }
        plain => chars.next() == Some(plain) && matches_pattern(rest, chars.as_str()),
    }
}
