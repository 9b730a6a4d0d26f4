//! Connected apps: what a person has granted, or what was granted in a workspace, seen and ended.

use super::OAuth;
use crate::{
    audit,
    auth::{AuthError, sessions::own_session},
    model::{
        audit::Action,
        id::GrantId,
        oauth::grant::{Grant, GrantEnd},
        page::{Items, Page},
        principal::Caller,
        scope::Scope,
    },
    store::{self, connected_apps::Whose},
};

const NONE: AuthError = AuthError::NotFound("connected app");

impl OAuth {
    /// What the caller has granted, in whatever workspace; and how much there is.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a caller that is no session.
    pub async fn own_grants(
        &self,
        caller: &Caller,
        page: Page,
    ) -> Result<(Items<Grant>, i64), AuthError> {
        let (_, user) = own_session(caller)?;
        self.grants(caller, Whose::Person(user), page).await
    }

    /// What was granted in the caller's workspace, by whomever.
    ///
    /// # Errors
    /// [`AuthError::InsufficientScope`] for who does not run the workspace.
    pub async fn workspace_grants(
        &self,
        caller: &Caller,
        page: Page,
    ) -> Result<(Items<Grant>, i64), AuthError> {
        own_session(caller)?;
        let held = caller.principal.scope;
        if held < Scope::Admin {
            return Err(AuthError::InsufficientScope { required: Scope::Admin, held });
        }
        self.grants(caller, Whose::Workspace(caller.workspace()), page).await
    }

    async fn grants(
        &self,
        caller: &Caller,
        whose: Whose,
        page: Page,
    ) -> Result<(Items<Grant>, i64), AuthError> {
        let used_since = self.env.clock.now() - self.idle;
        let mut tx = match whose {
            Whose::Person(user) => self.store.begin_personal(user).await?,
            Whose::Workspace(workspace) => {
                self.store.begin(workspace, caller.principal.person()).await?
            }
        };
        let items = store::connected_apps::list(&mut tx, whose, used_since, page).await?;
        let total = store::connected_apps::count(&mut tx, whose, used_since).await?;
        Ok((items, total))
    }

    /// Ends something that the caller granted, or that anybody did in the workspace that the caller runs, at
    /// once. A second time does nothing.
    ///
    /// # Errors
    /// [`AuthError::NotFound`].
    pub async fn end_grant(&self, caller: &Caller, id: GrantId) -> Result<(), AuthError> {
        let (_, user) = own_session(caller)?;
        let mut tx = self.store.begin(caller.workspace(), Some(user)).await?;
        let grant = store::connected_apps::get(&mut tx, id).await?.ok_or(NONE)?;
        if grant.user_id != Some(user) {
            let role = store::members::pin_role(&mut tx, caller.workspace(), user).await?;
            let runs = role.is_some_and(|role| role.scope() == Scope::Admin);
            if !runs || grant.workspace_id != caller.workspace() {
                return Err(NONE);
            }
        }
        let (workspace, now) = (grant.workspace_id, self.env.clock.now());
        if store::oauth_grants::end(&mut tx, workspace, id, now, GrantEnd::Person).await? {
            let event = audit::event_in(&self.env, caller, workspace, Action::GrantEnded, 204)
                .on(id, grant.client_name)
                .with(GrantEnd::Person.told(grant.client_id, grant.user_id));
            tx.enter(workspace).await?;
            store::audit::insert(&mut tx, workspace, &event).await?;
            tx.commit().await?;
        }
        // Also a second time: the first one's client may have gone without an answer.
        Ok(self.auth.fence().wait().await?)
    }
}
