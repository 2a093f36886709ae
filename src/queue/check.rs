//! Whether a database is fit for the job.

use super::Inner;
use super::view::{Finding, Level};

impl Inner {
    pub(super) async fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut tell =
            |level, what: &str, found: String| findings.push(Finding { level, what: what.to_owned(), found });
        match self.paused().await {
            Ok(_) => tell(Level::Ok, "our tables", "there".to_owned()),
            Err(error) => tell(Level::Failed, "our tables", error.to_string()),
        }
        findings
    }
}
