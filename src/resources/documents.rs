//! Agents, calls, knowledge bases and campaigns.
//!
//! A document is what the client stored, unknown fields included; a few fields are the service's own
//! (ids, times, a call's status), and what a client sends for those is passed over.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{ResourceError, Resources, refuse};
use crate::{
    model::{
        document::{Document, Kind},
        id::{self, AgentId},
        page::{Items, Page},
        principal::Caller,
        text, timestamp,
    },
    store::{self, Tx},
};

/// The greatest size of a stored document, in bytes of JSON. A body is bounded by
/// `server.max_body_bytes`, but many small changes could add up to any size.
const MAX_BYTES: usize = 1 << 20;

impl Resources {
    /// Stores a new document.
    ///
    /// # Errors
    /// [`ResourceError::Invalid`] for a missing or bad field.
    pub async fn create(
        &self,
        caller: &Caller,
        kind: Kind,
        body: Map<String, Value>,
    ) -> Result<Document, ResourceError> {
        let now = self.env.clock.now();
        let mut document = Document {
            id: self.env.new_uuid(),
            agent_id: None,
            body: with_defaults(kind, own_fields(kind, body)),
            created_at: now,
            updated_at: now,
        };
        check(kind, &document.body)?;
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        document.agent_id = pin_agent(&mut tx, caller, kind, &document.body).await?;
        store::documents::insert(&mut tx, caller.workspace(), kind, &document).await?;
        tx.commit().await?;
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
        let items = store::documents::list(&mut tx, workspace, kind, agent, page).await?;
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
        change: Map<String, Value>,
    ) -> Result<Document, ResourceError> {
        let change = own_fields(kind, change);
        check_given(kind, &change)?;
        self.rewrite(caller, kind, id, |body| body.extend(change)).await
    }

    /// Ends a call; one that has ended stays as it is.
    ///
    /// # Errors
    /// [`ResourceError::NotFound`].
    pub async fn end_call(&self, caller: &Caller, id: Uuid) -> Result<Document, ResourceError> {
        let now = self.env.clock.now();
        self.rewrite(caller, Kind::Call, id, |body| {
            if body.get("call_status") != Some(&json!("ended")) {
                body.insert("call_status".to_owned(), json!("ended"));
                body.insert("ended_at".to_owned(), json!(timestamp::format(now)));
            }
        })
        .await
    }

    async fn rewrite(
        &self,
        caller: &Caller,
        kind: Kind,
        id: Uuid,
        rewrite: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<Document, ResourceError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin(workspace, None).await?;
        let found = store::documents::lock(&mut tx, workspace, kind, id).await?;
        let mut document = found.ok_or(not_found(kind))?;
        let agent_before = document.body.get("agent_id").cloned();
        rewrite(&mut document.body);
        check_size(&document.body)?;
        if document.body.get("agent_id") != agent_before.as_ref() {
            document.agent_id = pin_agent(&mut tx, caller, kind, &document.body).await?;
        }
        document.updated_at = self.env.clock.now();
        store::documents::update(&mut tx, workspace, kind, &document).await?;
        tx.commit().await?;
        Ok(document)
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

/// A document as clients see it: what was stored, and the service's own fields over it.
#[must_use]
pub fn render(kind: Kind, document: Document) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert(kind.id_field().to_owned(), json!(id::format(kind.prefix(), document.id)));
    body.extend(document.body);
    body.insert("created_at".to_owned(), json!(timestamp::format(document.created_at)));
    body.insert("updated_at".to_owned(), json!(timestamp::format(document.updated_at)));
    if kind == Kind::KnowledgeBase {
        let sources = ["knowledge_base_texts", "knowledge_base_urls"];
        let count: usize = sources
            .iter()
            .filter_map(|field| body.get(*field).and_then(Value::as_array))
            .map(Vec::len)
            .sum();
        body.insert("sources_count".to_owned(), json!(count));
    }
    body
}

fn not_found(kind: Kind) -> ResourceError {
    ResourceError::NotFound(match kind {
        Kind::Agent => "agent",
        Kind::Call => "call",
        Kind::KnowledgeBase => "knowledge base",
        Kind::Campaign => "campaign",
    })
}

/// Drops what only the service says.
fn own_fields(kind: Kind, mut body: Map<String, Value>) -> Map<String, Value> {
    let service = match kind {
        Kind::Call => &["call_status", "ended_at"][..],
        Kind::KnowledgeBase => &["sources_count"],
        Kind::Agent | Kind::Campaign => &[],
    };
    for field in service.iter().chain(&[kind.id_field(), "created_at", "updated_at"]) {
        body.remove(*field);
    }
    body
}

/// What a document has from the start though its client did not say so.
fn with_defaults(kind: Kind, mut body: Map<String, Value>) -> Map<String, Value> {
    let mut default = |field: &str, value: Value| {
        body.entry(field).or_insert(value);
    };
    match kind {
        Kind::Agent => default("status", json!("active")),
        Kind::Call => {
            default("direction", json!("outbound"));
            body.insert("call_status".to_owned(), json!("registered"));
        }
        Kind::KnowledgeBase => {
            // Either name will do, and both are there to be read.
            let name = body.get("knowledge_base_name").or(body.get("name")).cloned();
            for field in ["knowledge_base_name", "name"] {
                body.entry(field).or_insert(name.clone().unwrap_or_default());
            }
        }
        Kind::Campaign => default("status", json!("draft")),
    }
    body
}

/// Fields that must be there, each with its check.
type FieldCheck = fn(&str) -> Result<(), crate::model::Invalid>;

fn required(kind: Kind) -> &'static [(&'static str, FieldCheck)] {
    fn name(field: &str, text: &str) -> Result<(), crate::model::Invalid> {
        text::name(field, text).map(drop)
    }
    match kind {
        Kind::Agent => &[("agent_name", |text| name("agent_name", text))],
        Kind::Call => &[("agent_id", check_agent_id), ("to_number", check_number)],
        Kind::KnowledgeBase => &[
            ("knowledge_base_name", |text| name("knowledge_base_name", text)),
            ("name", |text| name("name", text)),
        ],
        Kind::Campaign => &[("name", |text| name("name", text)), ("agent_id", check_agent_id)],
    }
}

fn check_agent_id(text: &str) -> Result<(), crate::model::Invalid> {
    text.parse::<AgentId>().map(drop).map_err(|_| no_such_agent())
}

/// E.164: a plus and up to fifteen digits, the first of them not zero.
fn check_number(text: &str) -> Result<(), crate::model::Invalid> {
    let digits = text.strip_prefix('+').unwrap_or_default();
    let fits = (7..=15).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !digits.starts_with('0');
    fits.then_some(()).ok_or_else(|| {
        crate::model::Invalid::new("to_number must be a number in E.164 form, such as +14155550100")
    })
}

fn no_such_agent() -> crate::model::Invalid {
    crate::model::Invalid::new("agent_id must be the id of an agent of this workspace")
}

fn check(kind: Kind, body: &Map<String, Value>) -> Result<(), ResourceError> {
    for (field, _) in required(kind) {
        if body.get(*field).is_none_or(Value::is_null) {
            return Err(ResourceError::invalid(field, format!("{field} is required")));
        }
    }
    check_given(kind, body)?;
    check_size(body)
}

fn check_given(kind: Kind, body: &Map<String, Value>) -> Result<(), ResourceError> {
    for (field, check) in required(kind) {
        match body.get(*field) {
            None => {}
            Some(Value::String(text)) => check(text).map_err(refuse(field))?,
            Some(_) => {
                return Err(ResourceError::invalid(field, format!("{field} must be a string")));
            }
        }
    }
    Ok(())
}

fn check_size(body: &Map<String, Value>) -> Result<(), ResourceError> {
    let bytes = serde_json::to_vec(body).map_or(0, |bytes| bytes.len());
    if bytes > MAX_BYTES { Err(ResourceError::TooLarge(MAX_BYTES)) } else { Ok(()) }
}

/// The agent that a call or campaign names; it must be of this workspace, and stays until commit.
async fn pin_agent(
    tx: &mut Tx,
    caller: &Caller,
    kind: Kind,
    body: &Map<String, Value>,
) -> Result<Option<AgentId>, ResourceError> {
    if !matches!(kind, Kind::Call | Kind::Campaign) {
        return Ok(None);
    }
    let agent = body.get("agent_id").and_then(Value::as_str).unwrap_or_default();
    let agent: AgentId = agent.parse().map_err(|_| no_such_agent()).map_err(refuse("agent_id"))?;
    if !store::documents::pin_agent(tx, caller.workspace(), agent).await? {
        return Err(refuse("agent_id")(no_such_agent()));
    }
    Ok(Some(agent))
}
