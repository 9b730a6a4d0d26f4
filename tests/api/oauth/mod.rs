//! OAuth 2.1: the authorization server and its clients.

mod authorize;
mod clients;
mod device;
mod grants;
mod interop;
mod metadata;
mod register;
mod revoke;
mod token;
