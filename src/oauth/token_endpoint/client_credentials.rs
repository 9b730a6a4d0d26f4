//! The client credentials grant (OAuth 2.1, section 4.2): a workspace client acts for itself.

use super::{ClientCredentialsRequest, TokenEndpoint, Tokens, issuance::TokenIssuance};
use crate::{
    model::{
        audit::Action,
        id::{GrantId, Id},
        oauth::{client::ClientOrigin, grant::NewOwnGrant},
    },
    oauth::{OAuthError, OAuthErrorCode, ProtocolError, clients::AuthenticatedClient},
    store::{self, oauth_grants::GrantParties},
};

impl TokenEndpoint {
    pub(super) async fn grant_to_client(
        &self,
        client: &AuthenticatedClient,
        request: &ClientCredentialsRequest,
    ) -> Result<Tokens, OAuthError> {
        let workspace = match client.origin {
            ClientOrigin::Workspace(workspace) if client.is_confidential() => workspace,
            _ => {
                let message = "client_credentials requires a workspace client with a secret";
                return Err(ProtocolError::new(OAuthErrorCode::UnauthorizedClient, message).into());
            }
        };
        let scope = client.effective_scope(request.scope);
        let resources = request.resources.resolve(&self.resources)?;
        let id: GrantId = self.context.env.new_id();
        let sealed_seed = self.grants.generate_seed(id)?;
        let new = NewOwnGrant {
            id,
            client_id: client.id,
            workspace_id: workspace,
            scope: client.effective_scope(client.scope),
            resources: self.resources.iter().map(str::to_owned).collect(),
            created_at: self.context.env.clock.now(),
            sealed_seed,
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
        self.commit_tokens(client, tx, issuance, Action::TokenIssued).await
    }
}
