//! Agents, calls, knowledge bases and campaigns.
//!
//! A document is what the client stored, unknown fields included; a few fields are the service's own
//! (ids, times, a call's status), and what a client sends for those is passed over: see
//! [`document_rules`](super::document_rules).

use uuid::Uuid;

use super::{ResourceError, Resources, document_rules as rules, refuse};
use crate::{
    model::{
        document::{Document, Kind},
        fields::Fields,
        id::AgentId,
        page::{Items, Page},
        principal::Caller,
        timestamp,
    },
    store::{self, Tx},
};

/// The greatest size of a page of documents: their number alone says little of it.
const MAX_PAGE_BYTES: i64 = 4 << 20;

impl Resources {
    /// Stores a new document.
    ///
    /// # Errors
    /// [`ResourceError::Invalid`] for a missing or bad field.
    pub async fn create(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        kind: Kind,
        body: Fields,
    ) -> Result<Document, ResourceError> {
        let body = rules::complete(kind, body)?;
        let now = self.env.clock.now();
        let mut document = Document {
            id: self.env.new_uuid(),
            agent_id: None,
            body: self.sized(&body)?,
            created_at: now,
            updated_at: now,
        };
        document.agent_id = pin_agent(tx, caller, kind, &body).await?;
        store::documents::insert(tx, caller.workspace(), kind, &document).await?;
        Ok(document)
    }

    /// A document.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`].
    pub async fn get(
        &self,
        caller: &Caller,
        kind: Kind,
        id: Uuid,
    ) -> Result<Document, ResourceError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let found = store::documents::get(&mut tx, caller.workspace(), kind, id).await?;
        found.ok_or(not_found(kind))
    }

    /// The documents of a kind, of one agent where asked for, and how many there are.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn list(
        &self,
        caller: &Caller,
        kind: Kind,
        agent: Option<AgentId>,
        page: Page,
    ) -> Result<(Items<Document>, i64), ResourceError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, None).await?;
        let items =
            store::documents::list(&mut tx, workspace, kind, agent, page, MAX_PAGE_BYTES).await?;
        let total = store::documents::count(&mut tx, workspace, kind, agent).await?;
        Ok((items, total))
    }

    /// Changes the fields of a document that are given; the others stay.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`], [`ResourceError::Invalid`] for a bad field.
    pub async fn change(
        &self,
        caller: &Caller,
        kind: Kind,
        id: Uuid,
        change: Fields,
    ) -> Result<Document, ResourceError> {
        let change = rules::check_change(kind, change)?;
        self.rewrite(caller, kind, id, |body| body.extend(change)).await
    }

    /// Ends a call; one that has ended stays as it is.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`].
    pub async fn end_call(&self, caller: &Caller, id: Uuid) -> Result<Document, ResourceError> {
        let now = self.env.clock.now();
        self.rewrite(caller, Kind::Call, id, |body| {
            if body.text("call_status").as_deref() != Some("ended") {
                body.set("call_status", &"ended");
                body.set("ended_at", &timestamp::format(now));
            }
        })
        .await
    }

    async fn rewrite(
        &self,
        caller: &Caller,
        kind: Kind,
        id: Uuid,
        rewrite: impl FnOnce(&mut Fields),
    ) -> Result<Document, ResourceError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, None).await?;
        let found = store::documents::lock(&mut tx, workspace, kind, id).await?;
        let mut document = found.ok_or(not_found(kind))?;
        let mut body: Fields = serde_json::from_str(&document.body).map_err(|_| damaged())?;
        let agent_before = body.text("agent_id");
        rewrite(&mut body);
        rules::count_sources(kind, &mut body);
        document.body = self.sized(&body)?;
        if body.text("agent_id") != agent_before {
            document.agent_id = pin_agent(&mut tx, caller, kind, &body).await?;
        }
        document.updated_at = self.env.clock.now();
        store::documents::update(&mut tx, workspace, kind, &document).await?;
        tx.commit().await?;
        Ok(document)
    }

    /// A body as it is stored, unless it is too large.
    fn sized(&self, body: &Fields) -> Result<String, ResourceError> {
        let (json, max) = (body.to_json(), self.max_document_bytes);
        if json.len() > max { Err(ResourceError::TooLarge(max)) } else { Ok(json) }
    }

    /// Erases a document.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`].
    pub async fn delete(&self, caller: &Caller, kind: Kind, id: Uuid) -> Result<(), ResourceError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        if !store::documents::delete(&mut tx, caller.workspace(), kind, id).await? {
            return Err(not_found(kind));
        }
        tx.commit().await?;
        Ok(())
    }
}

fn not_found(kind: Kind) -> ResourceError {
    ResourceError::NotFound(match kind {
        Kind::Agent => "agent",
        Kind::Call => "call",
        Kind::KnowledgeBase => "knowledge base",
        Kind::Campaign => "campaign",
    })
}

fn damaged() -> ResourceError {
    ResourceError::Internal("a stored document is no JSON object")
}

/// The agent that a call or campaign names; it must be of this workspace, and stays until commit.
async fn pin_agent(
    tx: &mut Tx,
    caller: &Caller,
    kind: Kind,
    body: &Fields,
) -> Result<Option<AgentId>, ResourceError> {
    if !matches!(kind, Kind::Call | Kind::Campaign) {
        return Ok(None);
    }
    let no_such_agent = || refuse("agent_id")(rules::no_such_agent());
    let agent = body.text("agent_id").and_then(|text| text.parse::<AgentId>().ok());
    let agent = agent.ok_or_else(no_such_agent)?;
    if !store::documents::pin_agent(tx, caller.workspace(), agent).await? {
        return Err(no_such_agent());
    }
    Ok(Some(agent))
}
