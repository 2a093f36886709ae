//! The differences between the databases. Each has its own [`Dialect`]; everything else is said alike, with `?` for values.

/// Makes SQL from the SQL for the bytes of each column, `None` being a column that the table lacks.
pub(crate) type FromColumns = fn(&[Option<String>; 5]) -> String;

/// A kind of database. MySQL stands for MariaDB too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    MySql,
    Postgres,
    Sqlite,
}

/// The words of one database.
pub(crate) struct Dialect {
    pub engine: Engine,
    /// READ COMMITTED, lock waits of 5 s, UTC.
    pub session: &'static str,
    pub begin: &'static str,
    /// Inside a transaction: short lock waits. The shortest on MySQL is 1 s.
    pub short_waits: &'static str,
    /// Transactions lock rows. Where they lock the whole database, one row is never locked by itself.
    pub locks_rows: bool,
    /// Behind a SELECT on our tables whose rows are about to change.
    pub lock: &'static str,
    /// Behind a table's name in a statement that locks rows: the index to go by. MySQL locks, and waits for, each row
    /// that it looks at, and of a small table it looks at all unless told not to.
    pub by_index: fn(index: &str) -> String,
    /// `DELETE`, up to the table, which is called `q` and can take an index.
    pub delete: &'static str,
    /// Records stand in the order of their numbers, and are found by them rather than by their ids: with one index
    /// less, each mail costs a third less there. The others, which cannot be told by which index to go, would take
    /// another without statistics.
    pub by_number: bool,
    /// Numbers without a gap are written as a range. PostgreSQL and SQLite gain nothing by it.
    pub ranges: bool,
    /// The index that a table's numbers stand in.
    pub numbered_by: Option<&'static str>,
    pub quote: char,
    /// A row's number as a signed 64-bit integer.
    pub mid: &'static str,
    /// Before and behind the VALUES of an INSERT that leaves out what is there already.
    pub skip: (&'static str, &'static str),
    /// Behind the VALUES of an INSERT that overwrites what is there already.
    /// `first_deferred` stays the later one: an outage may have been excused while the mail was on the wire.
    pub same_record: &'static str,
    pub same_recipient: &'static str,
    pub same_dispatcher: &'static str,
    /// The database's own clock, in milliseconds since 1970.
    pub now: &'static str,
    /// Name, type and size limit of each column of a table.
    pub columns: &'static str,
    /// Says YES where the table's storage engine has transactions; `None` where all tables have.
    pub transactional: Option<&'static str>,
    /// About how many rows a table has, without counting.
    pub estimate: &'static str,
    /// The stored bytes of a column of this type; in UTF-8 where a letter is stored in more than one byte.
    pub bytes: fn(column: &str, kind: &str) -> String,
    /// The number of stored bytes of a column of this type, as a 64-bit integer; NULL for NULL. Tells it without the
    /// content, where the database can.
    pub length: fn(column: &str, kind: &str) -> String,
    /// -1 in place of the length of a column that a table lacks.
    pub no_length: &'static str,
    /// The function that returns the largest of its arguments.
    pub greatest: &'static str,
    /// A value that is too long for its column is cut off without an error, if the producer's session is not strict.
    /// A database that does not cut refuses such a value.
    pub cuts: bool,
    /// NULL in place of the bytes of a column that a table lacks.
    pub no_bytes: &'static str,
    /// The fingerprint of a row from the stored bytes of its columns; `None` where the database knows no SHA-256.
    pub fingerprint: Option<FromColumns>,
    /// `mid:fingerprint` from the latter.
    pub pair: fn(fingerprint: &str) -> String,
    /// A place for a value in an INSERT into a column of this type.
    pub place: fn(kind: &str) -> &'static str,
    /// Creates a producers' table, `{table}` and `{mparams}` being open.
    pub producers: &'static str,
    /// The column that only Admidio's table has, for the latter.
    pub producers_mparams: &'static str,
    /// The number that the last INSERT on this connection was given; `None` where INSERT can return it.
    pub last_number: Option<&'static str>,
}

impl std::fmt::Debug for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.engine.fmt(f)
    }
}

impl Dialect {
    /// A table's name, of which only letters, digits, `_` and one dot are let through by `Queue::new`.
    pub fn quoted(&self, table: &str) -> String {
        let quote = self.quote;
        table.split('.').map(|part| format!("{quote}{part}{quote}")).collect::<Vec<_>>().join(".")
    }

    /// The condition that a column is one of these numbers, and its values. Most batches are one stretch without a gap, or
    /// a few, and MySQL is told a range in less time than hundreds of numbers.
    ///
    /// Not for statements that lock rows of the producers: they would wait for the row behind the range too, which a
    /// transaction of theirs may be about to insert.
    pub fn among(&self, column: &str, numbers: impl Iterator<Item = i64>) -> (String, Vec<i64>) {
        let mut numbers: Vec<i64> = numbers.collect();
        numbers.sort_unstable();
        let stretches = numbers.chunk_by(|one, next| next.saturating_sub(*one) <= 1);
        let ranges: Vec<_> = stretches.filter_map(|stretch| Some([*stretch.first()?, *stretch.last()?])).collect();
        if self.ranges && (1..=STRETCHES).contains(&ranges.len()) {
            let ranges = padded(ranges);
            let each = vec![format!("{column} BETWEEN ? AND ?"); ranges.len()];
            return (format!("({})", each.join(" OR ")), ranges.concat());
        }
        let numbers = padded(numbers);
        (format!("{column} IN ({})", placeholders(numbers.len())), numbers)
    }
}

/// The most ranges of numbers in one condition; a list of numbers is shorter beyond.
const STRETCHES: usize = 8;

/// `?, ?, ?`
pub(crate) fn placeholders(count: usize) -> String {
    vec!["?"; count].join(", ")
}

/// `(?, ?), (?, ?)`
pub(crate) fn tuples(count: usize, placeholders: &str) -> String {
    vec![format!("({placeholders})"); count].join(", ")
}

/// The most rows that one statement concerns.
pub(crate) const GROUP: usize = 256;

/// Repeats the last item until the number is a power of two, so that few different statements are prepared. Only for
/// statements to which a repeated item says nothing new.
pub(crate) fn padded<T: Clone>(mut items: Vec<T>) -> Vec<T> {
    if let Some(last) = items.last().cloned() {
        items.resize(items.len().next_power_of_two(), last);
    }
    items
}
