//! Layer 7: a ledger over HTTP. The only room with asynchronous code beside the chain's client.
//!
//! [`serve`] accepts connections under limits; [`routes`] puts together the endpoints of the rooms,
//! each of which is a table of [`endpoint::Endpoint`]s; [`blob`] alone answers ranges; [`node`] is what
//! all of them share: the ledger as it is published now, and which of its files may be read.
//!
//! A new room is a file with `pub fn endpoints() -> Vec<Endpoint>` and its line in [`routes::table`].
//! Routes, limits and answers: `schema/http.md`.
//!
//! Trust: no client is believed, and none has to believe this server: whatever it hands out is
//! compared with roots and signatures by whoever reads it. TLS is a reverse proxy's work.

pub mod anchoring;
pub mod blob;
pub mod body;
pub mod control;
pub mod endpoint;
pub mod files;
pub mod health;
pub mod hub;
pub mod log;
pub mod manifests;
pub mod metrics;
pub mod node;
pub mod openapi;
pub mod pace;
pub mod page;
pub mod path;
pub mod problem;
pub mod proofs;
pub mod quota;
pub mod range;
pub mod rounds;
pub mod routes;
pub mod schemas;
pub mod serve;
pub mod submissions;
pub mod uploads;
pub mod visible;

pub use self::{
    node::Node,
    serve::{Limits, ServeError, Server},
};
