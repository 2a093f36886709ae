//! What was accepted, in an SQLite file of this dispatcher's own.
