//! The commands of the documents, run as a reader runs them, and their outputs compared.
//!
//! Each document with code blocks has a test, which fails at a block that it does not know how to
//! run. The commands of a document run in one shell (`shell.rs`), in their order, against a real
//! service. What cannot run here is in `stand_ins.rs`, with the checks of its arguments.
//!
//! | block | how it runs |
//! |---|---|
//! | `sh` | in the shell; a command that fails, fails the test |
//! | `text` directly after it | is its output: `…` stands for any text (`output.rs`) |
//! | `<!-- test: … -->` | commands that readers do not see, such as a preparation |
//! | `sql` | `psql "$OWNER_URL"` |
//! | `python` | runs; if it begins with `# name.py`, it is saved for a later command |
//! | others | the test of the document takes and runs them, such as configurations of nginx |

mod container;
mod demo_service;
mod deployment;
mod gateway_checks;
mod gateway_tunnels;
mod gateways;
mod inline;
mod markdown;
mod output;
mod page;
mod pages;
mod physical_backups;
mod promql;
mod shell;
mod stand_ins;
