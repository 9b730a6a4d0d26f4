//! The client credentials grant (OAuth 2.1, section 4.2): a workspace client acts for itself.

use super::{TokenContext, TokenEndpoint, Tokens, issuance::TokenIssuance};
use crate::{
    model::{
        audit::Action,
        id::Id,
        oauth::{client::ClientOrigin, grant::NewGrant},
        refresh_token::RefreshSeed,
    },
    oauth::{
        OAuthError, OAuthErrorCode,
        request::{requested_resources, requested_scope},
    },
    store::{self, oauth_grants::GrantParties},
};

impl TokenEndpoint {
    pub(super) async fn client_credentials_grant(
        &self,
        context: TokenContext<'_>,
    ) -> Result<Tokens, OAuthError> {
        let TokenContext { client, parameters, .. } = context;
        let workspace = match client.origin {
            ClientOrigin::Workspace(workspace) if client.is_confidential() => workspace,
            _ => {
                let message = "client_credentials requires a workspace client with a secret";
                return Err(OAuthError::new(OAuthErrorCode::UnauthorizedClient, message));
            }
        };
        let scope = client.effective_scope(requested_scope(parameters)?);
        let resources = requested_resources(parameters, &self.resources)?;
        let now = self.context.env.clock.now();
        let new = NewGrant {
            id: self.context.env.new_id(),
            client_id: client.id,
            workspace_id: workspace,
            granted_by: None,
            scope: client.effective_scope(client.scope),
            resources: self.resources.iter().map(str::to_owned).collect(),
            code: None,
            created_at: now,
            redeem_by: now,
            seed: RefreshSeed::new(self.context.env.entropy.bytes()),
        };
        let mut tx = self.context.store.begin(workspace, None).await?;
        let id = store::oauth_grants::get_or_create_own_grant(&mut tx, &new).await?;
        self.charge_token_request(id.uuid())?;
        let parties = GrantParties {
            id,
            client_id: client.id,
            workspace_id: workspace,
            user_id: None,
            lacks_second_factor: false,
        };
        let issuance = TokenIssuance { parties, scope, resources, refresh: None };
        self.commit_tokens(context, tx, issuance, Action::TokenIssued).await
    }
}
