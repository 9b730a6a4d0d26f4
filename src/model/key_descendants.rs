//! Descendants of an API key: the keys, OAuth clients and invitations that it made, directly or
//! through keys that it made, and the access that these keys gave to what others made.

use time::OffsetDateTime;

use super::{
    api_key::KeyStatus,
    id::{ApiKeyId, ClientId, UserId},
    invitation::Invitation,
    page::ListPage,
    scope::Scope,
    user::Member,
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
    /// Access that it gave to what others made.
    pub added: AddedAccess,
}

impl KeyDescendants {
    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { api_keys, oauth_clients, invitations, added } = self;
        api_keys.is_empty()
            && oauth_clients.is_empty()
            && invitations.is_empty()
            && added.is_empty()
    }

    /// True if a list is incomplete.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let Self { api_keys, oauth_clients, invitations, added } = self;
        api_keys.has_more || oauth_clients.has_more || invitations.has_more || added.has_more()
    }
}

/// The source of access that outlasts it.
#[derive(Debug, Clone, Copy)]
pub enum AccessSource {
    /// An API key, and the keys that it made.
    Key(ApiKeyId),
    /// A user, directly or through API keys.
    User(UserId),
}

impl AccessSource {
    /// Returns the API key.
    #[must_use]
    pub fn key(self) -> Option<ApiKeyId> {
        match self {
            Self::Key(id) => Some(id),
            Self::User(_) => None,
        }
    }

    /// Returns the user.
    #[must_use]
    pub fn user(self) -> Option<UserId> {
        match self {
            Self::Key(_) => None,
            Self::User(id) => Some(id),
        }
    }
}

/// Access that a source gave to what others made. Each list is bounded, newest first.
#[derive(Debug)]
pub struct AddedAccess {
    /// Secrets of OAuth clients that are valid, or from whose time the client has grants.
    pub client_secrets: ListPage<AddedSecret>,
    /// Redirect URIs of OAuth clients, and removed ones from whose time the client has grants.
    pub redirect_uris: ListPage<AddedRedirectUri>,
    /// Members that the source invited, or whose role it set, also through members and keys that it
    /// gave access to. Of a user, only administrators.
    pub members: ListPage<Member>,
    /// Keys that the source enabled, or allowed further networks, in the same ways. Of a key, also
    /// keys that such members and keys created since.
    pub widened_keys: ListPage<DescendantKey>,
}

impl AddedAccess {
    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { client_secrets, redirect_uris, members, widened_keys } = self;
        client_secrets.is_empty()
            && redirect_uris.is_empty()
            && members.is_empty()
            && widened_keys.is_empty()
    }

    /// Leaves out what was added to OAuth clients.
    #[must_use]
    pub fn without_clients(self) -> Self {
        Self {
            client_secrets: ListPage::from_overfetch(Vec::new(), 0),
            redirect_uris: ListPage::from_overfetch(Vec::new(), 0),
            ..self
        }
    }

    /// True if a list is incomplete.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let Self { client_secrets, redirect_uris, members, widened_keys } = self;
        client_secrets.has_more
            || redirect_uris.has_more
            || members.has_more
            || widened_keys.has_more
    }
}

/// A secret that was added to an OAuth client.
#[derive(Debug)]
pub struct AddedSecret {
    /// The client's id.
    pub client_id: ClientId,
    /// The client's name.
    pub client_name: String,
    /// The time at which it was added.
    pub created_at: OffsetDateTime,
    /// The public id of the principal that added it.
    pub created_by: Option<String>,
}

/// A redirect URI that was added to an OAuth client.
#[derive(Debug)]
pub struct AddedRedirectUri {
    /// The client's id.
    pub client_id: ClientId,
    /// The client's name.
    pub client_name: String,
    /// The URI.
    pub uri: String,
    /// The time at which it was added first.
    pub added_at: OffsetDateTime,
    /// The time at which it was removed. The client has grants from the time in between.
    pub removed_at: Option<OffsetDateTime>,
    /// The public id of the principal that added it.
    pub added_by: String,
}

/// A key that another key made or widened.
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
    /// The public id of the principal that created it.
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
