//! Bodies of phone calls, for the OpenAPI document: JSON documents with a few known fields.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::model::id::{AgentId, CallId};

/// A call to place. All other fields are stored too, except those that the service
/// sets itself, such as `created_at`.
#[derive(ToSchema)]
pub struct CreateCall {
    /// The id of an agent of the workspace.
    pub agent_id: AgentId,
    /// The phone number to call, in E.164 form.
    #[schema(pattern = "^\\+[1-9][0-9]{6,14}$", example = "+14155550100")]
    pub to_number: String,
    /// Any other fields, such as `topic` and `metadata`.
    #[serde(flatten)]
    pub additional_fields: BTreeMap<String, Value>,
}

/// A call with all its stored fields.
#[derive(ToSchema)]
pub struct Call {
    /// The id of the call.
    pub call_id: CallId,
    /// The id of the agent that makes the call.
    pub agent_id: AgentId,
    /// The phone number that is called.
    #[schema(example = "+14155550100")]
    pub to_number: String,
    /// `registered` or `ended`.
    #[schema(example = "registered")]
    pub call_status: String,
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

/// A page of calls.
#[derive(ToSchema)]
pub struct Calls {
    /// The calls, newest first.
    pub calls: Vec<Call>,
    /// Total number of calls that match the filter.
    pub total: i64,
    /// Cursor of the next page, or null on the last page.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}
