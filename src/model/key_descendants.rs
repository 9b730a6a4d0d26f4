//! Descendants of an API key: the keys, OAuth clients and invitations that it made, directly or
//! through keys that it made.

use time::OffsetDateTime;

use super::{
    api_key::KeyStatus,
    id::{ApiKeyId, ClientId},
    invitation::Invitation,
    page::ListPage,
    scope::Scope,
};

/// The descendants of a key that still give access. Each list is bounded, newest first.
#[derive(Debug)]
pub struct KeyDescendants {
    /// Keys that are not revoked, also as successors of other keys.
    pub api_keys: ListPage<DescendantKey>,
    /// OAuth clients.
    pub oauth_clients: ListPage<DescendantClient>,
    /// Open invitations.
    pub invitations: ListPage<Invitation>,
}

impl KeyDescendants {
    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { api_keys, oauth_clients, invitations } = self;
        api_keys.items.is_empty() && oauth_clients.items.is_empty() && invitations.items.is_empty()
    }

    /// True if a list is incomplete.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.api_keys.has_more || self.oauth_clients.has_more || self.invitations.has_more
    }
}

/// A key that another key made.
#[derive(Debug)]
pub struct DescendantKey {
    /// The key's id.
    pub id: ApiKeyId,
    /// The key's name.
    pub name: String,
    /// The key's scope.
    pub scope: Scope,
    /// The key's status: active or disabled.
    pub status: KeyStatus,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// The public id of the key that created it.
    pub created_by: Option<String>,
}

/// An OAuth client that a key made.
#[derive(Debug)]
pub struct DescendantClient {
    /// The client's id.
    pub id: ClientId,
    /// The client's name.
    pub name: String,
    /// The maximum scope of its grants.
    pub scope: Option<Scope>,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// The public id of the key that created it.
    pub created_by: Option<String>,
}
