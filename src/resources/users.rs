//! The workspace, its members, and the user behind a credential.

use super::{ResourceError, Resources, invalid_field};
use crate::{
    audit,
    model::{
        audit::Action,
        fields::{FieldValue, Fields},
        page::{ListPage, PageRequest},
        principal::Caller,
        text,
        user::{Member, User},
        workspace::Workspace,
    },
    store::{self, members, users, workspaces},
};

/// Maximum size of the profile that clients store about a user, in bytes of JSON.
const MAX_PROFILE_BYTES: usize = 64 * 1024;

/// User fields that only the service sets.
const SERVICE_FIELDS: [&str; 5] = ["id", "user_id", "workspace_id", "created_at", "role"];

/// Fields that a client could mistake for profile fields. They are refused, because other members
/// can read the profile.
const SECRET_FIELDS: [&str; 4] = ["password", "current_password", "new_password", "password_hash"];

impl Resources {
    /// Returns the caller's workspace.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] if the workspace no longer exists.
    pub async fn workspace(&self, caller: &Caller) -> Result<Workspace, ResourceError> {
        let mut tx = self.store.begin_for(caller).await?;
        let workspace = workspaces::get(&mut tx, caller.workspace()).await?;
        workspace.ok_or(ResourceError::NotFound("workspace"))
    }

    /// Lists the members of the caller's workspace, with their total number.
    ///
    /// # Errors
    /// [`ResourceError::Store`] if a query fails.
    pub async fn list_members(
        &self,
        caller: &Caller,
        page: PageRequest,
    ) -> Result<(ListPage<Member>, i64), ResourceError> {
        let mut tx = self.store.begin_for(caller).await?;
        let items = members::list(&mut tx, caller.workspace(), page).await?;
        let total = members::count(&mut tx, caller.workspace()).await?;
        Ok((items, total))
    }

    /// Returns the user of a session or grant, or the user who created the API key.
    ///
    /// A session sees the user's own profile. Other credentials belong to the workspace, and see
    /// the one that this workspace stored.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] for a credential without a user, such as a key that the operator
    /// created, or if the user is no longer a member.
    pub async fn current_user(&self, caller: &Caller) -> Result<User, ResourceError> {
        let user = caller.principal.user_id().ok_or(ResourceError::NotFound("user"))?;
        // A transaction without a user sees only members of the workspace, not users who have left.
        let mut tx = self.store.begin_for(caller).await?;
        let found = if caller.principal.session().is_some() {
            users::get(&mut tx, user).await?
        } else {
            members::get_profile(&mut tx, caller.workspace(), user).await?
        };
        found.ok_or(ResourceError::NotFound("user"))
    }

    /// Changes the name and profile fields of that user that `change` contains, in the same profile
    /// that [`Resources::current_user`] returns. The email address cannot be changed here.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] as for [`Resources::current_user`], [`ResourceError::Invalid`]
    /// for an invalid field, [`ResourceError::TooLarge`] for a profile above 64 KB.
    pub async fn update_current_user(
        &self,
        caller: &Caller,
        mut change: Fields,
    ) -> Result<User, ResourceError> {
        for field in SERVICE_FIELDS {
            change.remove(field);
        }
        let full_name = match change.remove("full_name") {
            FieldValue::Absent => None,
            FieldValue::Null => Some(None),
            FieldValue::Text(name) => Some(Some(
                text::validate_name("full_name", &name).map_err(invalid_field("full_name"))?,
            )),
            FieldValue::Other => {
                return Err(ResourceError::invalid("full_name", "full_name must be a string"));
            }
        };
        for field in SECRET_FIELDS {
            if change.contains(field) {
                let reason = format!("{field} cannot be stored here");
                return Err(ResourceError::invalid(field, reason));
            }
        }
        let user_id = caller.principal.user_id().ok_or(ResourceError::NotFound("user"))?;
        let workspace = caller.workspace();
        let mut tx = self.store.begin_as(caller).await?;
        // A key still works after its creator has left, but it can no longer change that user.
        if !members::lock(&mut tx, workspace, user_id).await? {
            return Err(ResourceError::NotFound("user"));
        }
        let is_own = caller.principal.session().is_some();
        let user = if is_own {
            users::lock(&mut tx, user_id).await?
        } else {
            members::get_profile(&mut tx, workspace, user_id).await?
        };
        let mut user = user.ok_or(ResourceError::NotFound("user"))?;
        match change.remove("email") {
            FieldValue::Absent => {}
            FieldValue::Text(email) if email.eq_ignore_ascii_case(&user.email) => {}
            _ => return Err(ResourceError::invalid("email", "email cannot be changed here")),
        }
        user.full_name = full_name.unwrap_or(user.full_name);
        user.profile.extend(change);
        if user.profile.to_json().len() > MAX_PROFILE_BYTES {
            return Err(ResourceError::TooLarge(MAX_PROFILE_BYTES));
        }
        if is_own {
            users::update_profile(&mut tx, &user).await?;
        } else {
            members::update_profile(&mut tx, workspace, &user).await?;
        }
        let event = audit::event(&self.env, caller, Action::ProfileUpdated, 200)
            .with_target(user.id, user.display_name().to_owned());
        let audited = store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit(audited).await?.unfenced("a profile restricts no access");
        Ok(user)
    }
}
