//! The real router and control on an in-memory database, with a fake host: statuses, texts and headers.

mod auth;
mod builds;
mod create;
mod defaults;
mod description;
mod faults;
mod figures;
mod fixture;
mod keys;
mod life;
mod list;
mod logs;
mod network;
mod nodes;
mod pause;
mod rate;
mod recovery;
mod rollback;
mod routes;
mod tags;
mod templates;
mod uploads;
