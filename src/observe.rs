//! What people and machines see of the work: logs now, and the picture of health that monitoring reads.

pub mod logs;
