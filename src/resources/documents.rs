//! Stored documents: agents, calls, knowledge bases and campaigns.
//!
//! A document contains what the client stored, including unknown fields. The service sets a few
//! fields itself (ids, times, the status of a call) and ignores client values for them; see
//! [`document_rules`](super::document_rules).

use uuid::Uuid;

use super::{ResourceError, Resources, document_rules as rules, invalid_field};
use crate::{
    config::Documents,
    model::{
        document::{Document, DocumentKind},
        fields::Fields,
        id::AgentId,
        page::{ListPage, PageRequest},
        principal::Caller,
        timestamp,
    },
    store::{self, Audited, Tx},
};

/// Maximum size of a page of documents, in bytes. The number of documents does not limit the size.
const MAX_PAGE_BYTES: i64 = 4 << 20;

/// The reason why a change to a document has no audit event of its own.
const NO_OWN_EVENT: &str = "documents are data of clients: only the requests are recorded";

impl Resources {
    /// Stores a new document in the caller's transaction, which the caller commits.
    ///
    /// # Errors
    /// [`ResourceError::Invalid`] for a missing or invalid field, [`ResourceError::TooLarge`] for a
    /// document that is too large, [`ResourceError::TooMany`] and [`ResourceError::StorageFull`] at
    /// the limits of the workspace.
    pub async fn create(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        kind: DocumentKind,
        body: Fields,
    ) -> Result<(Document, Audited), ResourceError> {
        let body = rules::complete_document(kind, body)?;
        let now = self.env.clock.now();
        let mut document = Document {
            id: self.env.new_uuid(),
            agent_id: None,
            body: self.serialize_body(&body)?,
            created_at: now,
            updated_at: now,
        };
        document.agent_id = lock_agent(tx, caller, kind, &body).await?;
        store::documents::insert(tx, caller.workspace(), kind, &document).await?;
        self.check_limits(tx, caller).await?;
        Ok((document, Audited::exempt(NO_OWN_EVENT)))
    }

    /// Returns a document of the caller's workspace.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] if the workspace has no such document.
    pub async fn get(
        &self,
        caller: &Caller,
        kind: DocumentKind,
        id: Uuid,
    ) -> Result<Document, ResourceError> {
        let mut tx = self.store.begin_for(caller).await?;
        let document = store::documents::get(&mut tx, caller.workspace(), kind, id).await?;
        document.ok_or(not_found(kind))
    }

    /// Lists the documents of a kind, optionally of one agent, with their total number.
    ///
    /// # Errors
    /// [`ResourceError::Store`] if a query fails.
    pub async fn list(
        &self,
        caller: &Caller,
        kind: DocumentKind,
        agent: Option<AgentId>,
        page: PageRequest,
    ) -> Result<(ListPage<Document>, i64), ResourceError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin_for(caller).await?;
        let items =
            store::documents::list(&mut tx, workspace, kind, agent, page, MAX_PAGE_BYTES).await?;
        let total = store::documents::count(&mut tx, workspace, kind, agent).await?;
        Ok((items, total))
    }

    /// Changes the fields of a document that `change` contains; other fields stay as they are.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] if the workspace has no such document,
    /// [`ResourceError::Invalid`] for an invalid field, [`ResourceError::StorageFull`] if it would
    /// grow beyond the limit of the workspace.
    pub async fn update(
        &self,
        caller: &Caller,
        kind: DocumentKind,
        id: Uuid,
        change: Fields,
    ) -> Result<Document, ResourceError> {
        let change = rules::validate_change(kind, change)?;
        self.update_body(caller, kind, id, |body| body.extend(change)).await
    }

    /// Ends a call. A call that has already ended does not change.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] if the workspace has no such call.
    pub async fn end_call(&self, caller: &Caller, id: Uuid) -> Result<Document, ResourceError> {
        let now = self.env.clock.now();
        self.update_body(caller, DocumentKind::Call, id, |body| {
            if body.get_text("call_status").as_deref() != Some("ended") {
                body.set("call_status", &"ended");
                body.set("ended_at", &timestamp::format(now));
            }
        })
        .await
    }

    async fn update_body(
        &self,
        caller: &Caller,
        kind: DocumentKind,
        id: Uuid,
        change: impl FnOnce(&mut Fields),
    ) -> Result<Document, ResourceError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin_for(caller).await?;
        let locked = store::documents::lock(&mut tx, workspace, kind, id).await?;
        let mut document = locked.ok_or(not_found(kind))?;
        let mut body: Fields = serde_json::from_str(&document.body).map_err(|_| damaged())?;
        let (old_agent, old_size) = (body.get_text("agent_id"), document.body.len());
        change(&mut body);
        rules::count_sources(kind, &mut body);
        document.body = self.serialize_body(&body)?;
        if body.get_text("agent_id") != old_agent {
            document.agent_id = lock_agent(&mut tx, caller, kind, &body).await?;
        }
        document.updated_at = self.env.clock.now();
        store::documents::update(&mut tx, workspace, kind, &document).await?;
        if document.body.len() > old_size {
            self.check_limits(&mut tx, caller).await?;
        }
        let audited = Audited::exempt(NO_OWN_EVENT);
        tx.commit(audited).await?.unfenced("documents grant no access");
        Ok(document)
    }

    /// Checks the limits of the workspace after a change, which the caller then does not commit.
    /// Another change of the workspace waits for the commit of this one, so it is counted.
    async fn check_limits(&self, tx: &mut Tx, caller: &Caller) -> Result<(), ResourceError> {
        let usage = store::documents::usage(tx, caller.workspace()).await?;
        let Documents { max_per_workspace, max_bytes_per_workspace } = self.limits;
        if usage.documents > max_per_workspace {
            return Err(ResourceError::TooMany(max_per_workspace));
        }
        if usage.bytes > max_bytes_per_workspace {
            return Err(ResourceError::StorageFull(max_bytes_per_workspace));
        }
        Ok(())
    }

    /// Serializes a body, or returns [`ResourceError::TooLarge`].
    fn serialize_body(&self, body: &Fields) -> Result<String, ResourceError> {
        let (json, max) = (body.to_json(), self.max_document_bytes);
        if json.len() > max { Err(ResourceError::TooLarge(max)) } else { Ok(json) }
    }

    /// Deletes a document.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`] if the workspace has no such document.
    pub async fn delete(
        &self,
        caller: &Caller,
        kind: DocumentKind,
        id: Uuid,
    ) -> Result<(), ResourceError> {
        let mut tx = self.store.begin_for(caller).await?;
        if !store::documents::delete(&mut tx, caller.workspace(), kind, id).await? {
            return Err(not_found(kind));
        }
        let audited = Audited::exempt(NO_OWN_EVENT);
        tx.commit(audited).await?.unfenced("documents grant no access");
        Ok(())
    }
}

fn not_found(kind: DocumentKind) -> ResourceError {
    ResourceError::NotFound(match kind {
        DocumentKind::Agent => "agent",
        DocumentKind::Call => "call",
        DocumentKind::KnowledgeBase => "knowledge base",
        DocumentKind::Campaign => "campaign",
    })
}

fn damaged() -> ResourceError {
    ResourceError::Internal("a stored document is not a JSON object")
}

/// Returns the agent that a call or campaign refers to, and locks it until the commit. It must
/// belong to the caller's workspace.
async fn lock_agent(
    tx: &mut Tx,
    caller: &Caller,
    kind: DocumentKind,
    body: &Fields,
) -> Result<Option<AgentId>, ResourceError> {
    if !matches!(kind, DocumentKind::Call | DocumentKind::Campaign) {
        return Ok(None);
    }
    let no_such_agent = || invalid_field("agent_id")(rules::no_such_agent());
    let agent = body.get_text("agent_id").and_then(|text| text.parse::<AgentId>().ok());
    let agent = agent.ok_or_else(no_such_agent)?;
    if !store::documents::lock_agent_for_share(tx, caller.workspace(), agent).await? {
        return Err(no_such_agent());
    }
    Ok(Some(agent))
}
