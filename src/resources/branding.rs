//! White-label settings of a workspace: a document of the client's own making.

use serde_json::{Map, Value};

use super::{ResourceError, Resources};
use crate::{
    audit,
    model::{audit::Action, principal::Caller},
    store::{self, workspaces},
};

impl Resources {
    /// The settings.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn branding(&self, caller: &Caller) -> Result<Map<String, Value>, ResourceError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let branding = workspaces::branding(&mut tx, caller.workspace()).await?;
        branding.ok_or(ResourceError::NotFound("workspace"))
    }

    /// Replaces the settings.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn set_branding(
        &self,
        caller: &Caller,
        branding: &Map<String, Value>,
    ) -> Result<(), ResourceError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, None).await?;
        if !workspaces::set_branding(&mut tx, workspace, branding).await? {
            return Err(ResourceError::NotFound("workspace"));
        }
        let event =
            audit::event(&self.env, caller, Action::BrandingUpdated, 200).on(workspace, None);
        store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit().await?;
        Ok(())
    }
}
