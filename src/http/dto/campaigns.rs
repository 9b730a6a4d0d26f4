//! Bodies of campaigns, for the OpenAPI document: JSON documents with a few known fields.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::model::id::{AgentId, CampaignId};

/// A campaign to create. All other fields are stored too, except those that the service
/// sets itself, such as `created_at`.
#[derive(ToSchema)]
pub struct CreateCampaign {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100, example = "Spring reminders")]
    pub name: String,
    /// The id of an agent of the workspace.
    pub agent_id: AgentId,
    /// Any other fields, such as `from_number`.
    #[serde(flatten)]
    pub additional_fields: BTreeMap<String, Value>,
}

/// A campaign with all its stored fields.
#[derive(ToSchema)]
pub struct Campaign {
    /// The id of the campaign.
    pub campaign_id: CampaignId,
    /// The name of the campaign.
    #[schema(example = "Spring reminders")]
    pub name: String,
    /// The id of the agent that makes the calls.
    pub agent_id: AgentId,
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

/// A page of campaigns.
#[derive(ToSchema)]
pub struct Campaigns {
    /// The campaigns, newest first.
    pub campaigns: Vec<Campaign>,
    /// Total number of campaigns in the workspace.
    pub total: i64,
    /// Cursor of the next page, or null on the last page.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}
