//! White-label settings of a workspace: a document of the client's own making.

use super::{ResourceError, Resources};
use crate::{
    audit,
    model::{audit::Action, brand::Brand, fields::Fields, id::WorkspaceId, principal::Caller},
    store::{self, workspaces},
};

/// The greatest size of the settings, in bytes of JSON.
const MAX_BRANDING_BYTES: usize = 64 * 1024;

impl Resources {
    /// The settings.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn branding(&self, caller: &Caller) -> Result<Fields, ResourceError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let branding = workspaces::branding(&mut tx, caller.workspace()).await?;
        branding.ok_or(ResourceError::NotFound("workspace"))
    }

    /// What the caller's workspace is called, and how it looks.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn appearance(&self, caller: &Caller) -> Result<(String, Brand), ResourceError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let appearance = workspaces::appearance(&mut tx, caller.workspace()).await?;
        appearance.ok_or(ResourceError::NotFound("workspace"))
    }

    /// How a workspace looks, to whoever signs in to it; as any, where there is no such workspace.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn brand_of(&self, workspace: WorkspaceId) -> Result<Brand, ResourceError> {
        let mut tx = self.store.begin(workspace, None).await?;
        let appearance = workspaces::appearance(&mut tx, workspace).await?;
        Ok(appearance.map(|(_, brand)| brand).unwrap_or_default())
    }

    /// Replaces the settings.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn set_branding(
        &self,
        caller: &Caller,
        branding: &Fields,
    ) -> Result<(), ResourceError> {
        if branding.to_json().len() > MAX_BRANDING_BYTES {
            return Err(ResourceError::TooLarge(MAX_BRANDING_BYTES));
        }
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
