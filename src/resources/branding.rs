//! White-label settings of a workspace: a JSON document that clients define.

use super::{ResourceError, Resources};
use crate::{
    audit,
    model::{audit::Action, brand::Brand, fields::Fields, id::WorkspaceId, principal::Caller},
    store::{self, AdminTx, workspaces},
};

/// Maximum size of the settings, in bytes of JSON.
const MAX_BRANDING_BYTES: usize = 64 * 1024;

impl Resources {
    /// Returns the white-label settings of the caller's workspace.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] if the workspace no longer exists.
    pub async fn branding(&self, caller: &Caller) -> Result<Fields, ResourceError> {
        let mut tx = self.store.begin_for(caller).await?;
        let branding = workspaces::branding(&mut tx, caller.workspace()).await?;
        branding.ok_or(ResourceError::NotFound("workspace"))
    }

    /// Returns the name and the brand of the caller's workspace.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] if the workspace no longer exists.
    pub async fn name_and_brand(&self, caller: &Caller) -> Result<(String, Brand), ResourceError> {
        let mut tx = self.store.begin_for(caller).await?;
        let appearance = workspaces::appearance(&mut tx, caller.workspace()).await?;
        appearance.ok_or(ResourceError::NotFound("workspace"))
    }

    /// Returns the brand of a workspace for its sign-in page. An unknown workspace has the default
    /// brand.
    ///
    /// # Errors
    /// [`ResourceError::Store`] if the query fails.
    pub async fn workspace_brand(&self, workspace: WorkspaceId) -> Result<Brand, ResourceError> {
        let mut tx = self.store.begin(workspace, None).await?;
        let appearance = workspaces::appearance(&mut tx, workspace).await?;
        Ok(appearance.map(|(_, brand)| brand).unwrap_or_default())
    }

    /// Replaces the white-label settings of the caller's workspace.
    ///
    /// # Errors
    /// [`ResourceError::TooLarge`] above 64 KB, [`ResourceError::AccessLost`] if the caller has
    /// lost its access.
    pub async fn set_branding(
        &self,
        caller: &Caller,
        branding: &Fields,
    ) -> Result<(), ResourceError> {
        if branding.to_json().len() > MAX_BRANDING_BYTES {
            return Err(ResourceError::TooLarge(MAX_BRANDING_BYTES));
        }
        let workspace = caller.workspace();
        let mut tx = self.store.begin_for(caller).await?;
        let (mut admin, _) = AdminTx::lock(&mut tx, caller).await?;
        workspaces::set_branding(&mut admin, workspace, branding).await?;
        let event = audit::event(&self.env, caller, Action::BrandingUpdated, 200)
            .with_target(workspace, None);
        let audited = store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit(audited).await?.unfenced("branding restricts no access");
        Ok(())
    }
}
