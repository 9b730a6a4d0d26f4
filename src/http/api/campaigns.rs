//! Campaigns.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::model::{
    document::Kind,
    id::{AgentId, CampaignId},
};

/// A campaign to be created, with any further fields.
#[derive(ToSchema)]
pub struct CreateCampaign {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100, example = "Spring reminders")]
    pub name: String,
    /// An agent of this workspace.
    pub agent_id: AgentId,
    /// Whatever else it is made of, such as `from_number`.
    #[serde(flatten)]
    pub further: BTreeMap<String, Value>,
}

/// A campaign, with whatever was stored of it.
#[derive(ToSchema)]
pub struct Campaign {
    /// Its id.
    pub campaign_id: CampaignId,
    /// Its name.
    #[schema(example = "Spring reminders")]
    pub name: String,
    /// Who speaks.
    pub agent_id: AgentId,
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

/// A page of campaigns.
#[derive(ToSchema)]
pub struct Campaigns {
    /// Newest first.
    pub campaigns: Vec<Campaign>,
    /// How many there are in all.
    pub total: i64,
    /// Where the next page begins.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

super::documents::document_routes! {
    kind: Kind::Campaign, id: CampaignId, plural: "campaigns",
    path: "/v1/campaigns", item: "/v1/campaigns/{id}",
    create: CreateCampaign, body: Campaign, page: Campaigns,
    parameters: (),
    summaries: ["List campaigns", "Create a campaign", "Get a campaign", "Change a campaign",
                "Delete a campaign"],
}
