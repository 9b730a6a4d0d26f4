//! OAuth 2.1: the authorization server and its clients.

mod authorize;
mod browser;
mod clients;
mod compatibility;
mod device;
mod grants;
mod interop;
mod metadata;
mod register;
mod revoke;
mod token;
