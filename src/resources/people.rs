//! The workspace, its members, and the person behind a credential.

use super::{ResourceError, Resources, refuse};
use crate::{
    audit,
    model::{
        audit::Action,
        fields::{Field, Fields},
        page::{Items, Page},
        principal::Caller,
        text,
        user::{Member, User},
        workspace::Workspace,
    },
    store::{self, members, users, workspaces},
};

/// The greatest size of what clients store about a person, in bytes of JSON.
const MAX_PROFILE_BYTES: usize = 64 * 1024;

/// What only the service says about a person.
const SERVICE_FIELDS: [&str; 5] = ["id", "user_id", "workspace_id", "created_at", "role"];

/// What clients may take for a field of the profile, and what would be kept there for all to read.
const SECRET_FIELDS: [&str; 4] = ["password", "current_password", "new_password", "password_hash"];

impl Resources {
    /// The caller's workspace.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn workspace(&self, caller: &Caller) -> Result<Workspace, ResourceError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let workspace = workspaces::get(&mut tx, caller.workspace()).await?;
        workspace.ok_or(ResourceError::NotFound("workspace"))
    }

    /// Its members, and how many they are.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn members(
        &self,
        caller: &Caller,
        page: Page,
    ) -> Result<(Items<Member>, i64), ResourceError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let items = members::list(&mut tx, caller.workspace(), page).await?;
        let total = members::count(&mut tx, caller.workspace()).await?;
        Ok((items, total))
    }

    /// The person of a session, or who minted the key.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] for a key that the operator minted, or somebody who has left.
    pub async fn person(&self, caller: &Caller) -> Result<User, ResourceError> {
        let person = caller.principal.person().ok_or(ResourceError::NotFound("person"))?;
        // Seen as a member, by anybody of the workspace: who has left is not.
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        users::get(&mut tx, person).await?.ok_or(ResourceError::NotFound("person"))
    }

    /// Changes what is given of that person's name and profile; the address is changed elsewhere.
    ///
    /// # Errors
    /// [`ResourceError::Invalid`] for a bad field.
    pub async fn change_person(
        &self,
        caller: &Caller,
        mut change: Fields,
    ) -> Result<User, ResourceError> {
        for field in SERVICE_FIELDS {
            change.remove(field);
        }
        let full_name = match change.remove("full_name") {
            Field::Absent => None,
            Field::Null => Some(None),
            Field::Text(name) => {
                Some(Some(text::name("full_name", &name).map_err(refuse("full_name"))?))
            }
            Field::Other => {
                return Err(ResourceError::invalid("full_name", "full_name must be a string"));
            }
        };
        for field in SECRET_FIELDS {
            if change.contains(field) {
                let reason = format!("{field} cannot be stored here");
                return Err(ResourceError::invalid(field, reason));
            }
        }
        let person = caller.principal.person().ok_or(ResourceError::NotFound("person"))?;
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, Some(person)).await?;
        // A key outlives its creator's membership, but not what it may do to them.
        let member = members::pin_role(&mut tx, workspace, person).await?;
        member.ok_or(ResourceError::NotFound("person"))?;
        let user = users::lock(&mut tx, person).await?;
        let mut user = user.ok_or(ResourceError::NotFound("person"))?;
        match change.remove("email") {
            Field::Absent => {}
            Field::Text(email) if email.eq_ignore_ascii_case(&user.email) => {}
            _ => return Err(ResourceError::invalid("email", "email cannot be changed here")),
        }
        user.full_name = full_name.unwrap_or(user.full_name);
        user.profile.extend(change);
        if user.profile.to_json().len() > MAX_PROFILE_BYTES {
            return Err(ResourceError::TooLarge(MAX_PROFILE_BYTES));
        }
        users::update_profile(&mut tx, &user).await?;
        let event = audit::event(&self.env, caller, Action::ProfileUpdated, 200)
            .on(user.id, user.display_name().to_owned());
        store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit().await?;
        Ok(user)
    }
}
