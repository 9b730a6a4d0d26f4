//! Resources of the platform's other services, stored as documents.

use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{AgentId, CallId, CampaignId, Id as _, KnowledgeBaseId};

/// The kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A voice agent.
    Agent,
    /// A phone call.
    Call,
    /// A knowledge base.
    KnowledgeBase,
    /// A campaign.
    Campaign,
}

impl Kind {
    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Call => "call",
            Self::KnowledgeBase => "knowledge_base",
            Self::Campaign => "campaign",
        }
    }

    /// What such documents' ids begin with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Agent => AgentId::PREFIX,
            Self::Call => CallId::PREFIX,
            Self::KnowledgeBase => KnowledgeBaseId::PREFIX,
            Self::Campaign => CampaignId::PREFIX,
        }
    }

    /// The field of the body that holds the document's own id.
    #[must_use]
    pub const fn id_field(self) -> &'static str {
        match self {
            Self::Agent => "agent_id",
            Self::Call => "call_id",
            Self::KnowledgeBase => "id",
            Self::Campaign => "campaign_id",
        }
    }
}

/// A stored document.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its id.
    pub id: Uuid,
    /// The agent that it is about, for calls and campaigns.
    pub agent_id: Option<AgentId>,
    /// What the client stored: a JSON object, as text.
    pub body: String,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it was last changed.
    pub updated_at: OffsetDateTime,
}
