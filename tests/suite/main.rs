mod ledger;
mod pace;
mod retry;
