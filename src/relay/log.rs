//! The name under which this part logs.

/// The target of what is logged here; at level debug this is the dialogue, without passwords and contents.
pub const LOG: &str = "mailqueue::relay";
