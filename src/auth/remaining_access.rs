//! Access that outlasts a key that is revoked, or a member that is removed or demoted: for the
//! audit event and the email that name it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::AuthError;
use crate::{
    model::{
        id::{UserId, WorkspaceId},
        key_descendants::{AccessSource, AddedAccess},
        mail::{NameList, RemainingAccess},
        scope::{Role, Scope},
    },
    store::{self, Tx},
};

/// Maximum number of API keys, of OAuth clients and so on that an audit event lists.
const MAX_LISTED: i64 = 100;

/// Returns the access that a member created or gave to others, for the metadata of an event and for
/// an email. With `role`, only keys and clients with a scope above that of the role.
pub(super) async fn of_member(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
    role: Option<Role>,
    now: OffsetDateTime,
) -> Result<(Value, RemainingAccess), AuthError> {
    let is_above = |scope: &Scope| role.is_none_or(|role| *scope > role.scope());
    let scopes: Vec<Scope> = Scope::ALL.into_iter().filter(is_above).collect();
    let keys = store::api_keys::list_by_creator(tx, workspace, user, &scopes, MAX_LISTED).await?;
    let clients =
        store::oauth_clients::list_by_creator(tx, workspace, user, &scopes, MAX_LISTED).await?;
    let source = AccessSource::User(user);
    let added =
        store::added_access::list_added_access(tx, workspace, source, now, MAX_LISTED).await?;
    let mut details = json!({
        "api_keys": ids_and_names(&keys.items),
        "more_api_keys": keys.has_more,
        "oauth_clients": ids_and_names(&clients.items),
        "more_oauth_clients": clients.has_more,
    });
    let mut remaining = RemainingAccess {
        has_more: keys.has_more || clients.has_more || added.has_more(),
        api_keys: keys.items.into_iter().map(|(_, name)| name).collect(),
        oauth_clients: clients.items.into_iter().map(|(_, name)| name).collect(),
        ..RemainingAccess::default()
    };
    name_added_access(&added, &mut details, &mut remaining);
    Ok((details, remaining))
}

/// Returns ids and names as the metadata of audit events lists them.
pub(super) fn ids_and_names<T: Serialize>(items: &[(T, String)]) -> Vec<Value> {
    items.iter().map(|(id, name)| json!({ "id": id, "name": name })).collect()
}

/// Adds what a source gave to others to the metadata of an audit event and to an email. Empty lists
/// are left out of the metadata.
pub(super) fn name_added_access(
    added: &AddedAccess,
    details: &mut Value,
    remaining: &mut RemainingAccess,
) {
    let AddedAccess { client_secrets, redirect_uris, members, widened_keys } = added;
    let secrets = client_secrets.items.iter().map(|it| (it.client_id, it.client_name.clone()));
    let uris = redirect_uris.items.iter().map(|it| (it.client_id, it.client_name.clone()));
    // Once for each client. A map in the order of ids is the same in every run.
    let secrets: BTreeMap<_, _> = secrets.collect();
    let uris: BTreeMap<_, _> = uris.collect();
    let members = members.items.iter().map(|member| (member.user_id, member.email.clone()));
    let keys = widened_keys.items.iter().map(|key| (key.id, key.name.clone()));
    let (members, keys): (Vec<_>, Vec<_>) = (members.collect(), keys.collect());
    let names = |clients: &BTreeMap<_, String>| NameList::new(clients.values().cloned());
    remaining.client_secrets = names(&secrets);
    remaining.redirect_uris = names(&uris);
    remaining.members = NameList::new(members.iter().map(|(_, email)| email.clone()));
    remaining.widened_api_keys = NameList::new(keys.iter().map(|(_, name)| name.clone()));
    for (field, list) in [
        ("client_secrets", ids_and_names(&secrets.into_iter().collect::<Vec<_>>())),
        ("redirect_uris", ids_and_names(&uris.into_iter().collect::<Vec<_>>())),
        ("members", ids_and_names(&members)),
        ("widened_api_keys", ids_and_names(&keys)),
    ] {
        if !list.is_empty() {
            details[field] = list.into();
        }
    }
}
