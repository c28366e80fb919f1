//! Layer 4: what comes in becomes a stored delta, or a refusal that says why.
//!
//! [`admit`] checks one foreign file against the model; [`dispose`] decides what comes of every
//! submission of a round, from the submissions log alone, so that anyone can decide it again.
//!
//! Trust: nothing in an upload is believed.

pub mod admit;
pub mod dispose;
pub mod native;
