//! Voice agents.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::model::{document::Kind, id::AgentId};

/// A voice agent to be created, with any further fields.
#[derive(ToSchema)]
pub struct CreateAgent {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100, example = "Front desk")]
    pub agent_name: String,
    /// Whatever else it is made of, such as `voice_id`, `language` and `response_engine`.
    #[schema(additional_properties)]
    #[serde(flatten)]
    pub further: BTreeMap<String, Value>,
}

/// A voice agent, with whatever was stored of it.
#[derive(ToSchema)]
pub struct Agent {
    /// Its id.
    pub agent_id: AgentId,
    /// Its name.
    #[schema(example = "Front desk")]
    pub agent_name: String,
    /// When it was created.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it was last changed.
    #[schema(format = DateTime)]
    pub updated_at: String,
    /// Whatever else was stored.
    #[serde(flatten)]
    pub further: BTreeMap<String, Value>,
}

/// A page of agents.
#[derive(ToSchema)]
pub struct Agents {
    /// Newest first.
    pub agents: Vec<Agent>,
    /// How many there are in all.
    pub total: i64,
    /// Where the next page begins.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

super::documents::document_routes! {
    kind: Kind::Agent, id: AgentId, plural: "agents",
    path: "/v1/agents", item: "/v1/agents/{id}",
    create: CreateAgent, body: Agent, page: Agents,
    parameters: (),
    summaries: ["List agents", "Create an agent", "Get an agent", "Change an agent", "Delete an agent"],
}
