//! The tables: finds, claims, loads and settles rows. All SQL on the producers' tables and on our records is below here.
//!
//! [`Queue`] is the handle; its functions stand in the files that do the work:
//!
//! - `claim`: finds rows, claims them, loads their content, marks them `sending`;
//! - `settle`: carries verdicts out, which deletes delivered rows, and acceptances that only the ledger knows;
//! - `delete`: deletes delivered rows where something is not as expected, in `parts`, and sets aside those that the
//!   database does not delete;
//! - `leases`: heartbeat, recovery of claims, take-over, pause flags;
//! - `list`, `operate`: show rows to operators, and change them;
//! - `cleanup`: drops records that stand for nothing any more; `unconfirmed`: undoes claims whose answer was lost;
//! - `check`, `migrate`: a database's fitness, and our tables in it.
//!
//! Below these are `table` (the producers' table), `records` (ours), `schema` (a table's columns) and `db`, which knows
//! databases and no mail.

mod check;
mod claim;
mod cleanup;
mod db;
mod delete;
mod error;
mod handle;
mod leases;
mod list;
mod migrate;
mod operate;
mod parts;
mod records;
mod rights;
mod schema;
mod settings;
mod settle;
mod settled;
mod table;
mod token;
mod unconfirmed;

pub use self::check::{Finding, Level, clock_ahead};
pub use self::claim::{Claim, Found, Row, Unread};
pub use self::db::Database;
pub use self::db::pool::Pools;
pub use self::db::server::Limits;
pub use self::delete::{DeleteRetry, Undeleted};
pub use self::error::Error;
pub use self::handle::{DispatcherId, Queue};
pub use self::leases::{PauseTarget, Paused, Recovered};
pub use self::list::{Content, Counts, Filter, Listed};
pub use self::operate::{Action, Outcome, Outcomes, Selected};
pub use self::settings::Settings;
pub use self::settle::Settlement;
pub use self::settled::Settled;
pub use self::table::Oversize;
pub use crate::secret::Secret as Password;
