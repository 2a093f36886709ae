//! The two moments of a transaction that the promises rest on.

use crate::mail::Address;
#[cfg(doc)]
use crate::outcome::Stage;
use crate::outcome::{Reply, Trouble};

/// Sees each transaction at the two moments that count, and can stop it at the first.
///
/// `relay` knows neither ledger nor queue; the dispatcher implements this with both.
pub trait TransactionHook: Send {
    /// All replies to MAIL, RCPT and DATA are in, `recipients` (never empty) were accepted, and nothing of the body has
    /// been written. An error stops the transaction here: no dot goes out, and the connection is dropped.
    fn before_final_dot(&mut self, recipients: &[Address]) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// The end of a transaction for which `before_final_dot` returned `Ok`; runs before the next final dot on this
    /// connection. `Ok` is a 2yz reply. In an error the stage says whether the final dot may have left
    /// ([`Stage::FinalDot`]) or has not ([`Stage::Data`]), and a cause other than a reply at [`Stage::FinalDot`] means
    /// that the outcome is unknown.
    fn after_final_dot(&mut self, answer: Result<&Reply, &Trouble>) -> impl Future<Output = ()> + Send;
}
