//! dcp
