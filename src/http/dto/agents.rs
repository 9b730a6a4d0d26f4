//! Bodies of voice agents, for the OpenAPI document: JSON documents with a few known fields.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::model::id::AgentId;

/// A voice agent to create. All other fields are stored too, except those that the service
/// sets itself, such as `created_at`.
#[derive(ToSchema)]
pub struct CreateAgent {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100, example = "Front desk")]
    pub agent_name: String,
    /// Any other fields, such as `voice_id`, `language` and `response_engine`.
    #[schema(additional_properties)]
    #[serde(flatten)]
    pub additional_fields: BTreeMap<String, Value>,
}

/// A voice agent with all its stored fields.
#[derive(ToSchema)]
pub struct Agent {
    /// The id of the agent.
    pub agent_id: AgentId,
    /// The name of the agent.
    #[schema(example = "Front desk")]
    pub agent_name: String,
    /// Time of creation.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// Time of the last change.
    #[schema(format = DateTime)]
    pub updated_at: String,
    /// All other stored fields.
    #[serde(flatten)]
    pub additional_fields: BTreeMap<String, Value>,
}

/// A page of agents.
#[derive(ToSchema)]
pub struct Agents {
    /// The agents, newest first.
    pub agents: Vec<Agent>,
    /// Total number of agents in the workspace.
    pub total: i64,
    /// Cursor of the next page, or null on the last page.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}
