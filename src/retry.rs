//! The policy: what an attempt means for a row. A pure function; time and chance are arguments.
