//! Documents: resources of the platform's other services, stored as JSON objects.

use time::OffsetDateTime;
use uuid::Uuid;

use super::id::{AgentId, CallId, CampaignId, Id as _, KnowledgeBaseId};

/// The kind of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// A voice agent.
    Agent,
    /// A phone call.
    Call,
    /// A knowledge base.
    KnowledgeBase,
    /// A campaign.
    Campaign,
}

impl DocumentKind {
    /// Returns the name that the database stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Call => "call",
            Self::KnowledgeBase => "knowledge_base",
            Self::Campaign => "campaign",
        }
    }

    /// Returns the id prefix of documents of this kind.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Agent => AgentId::PREFIX,
            Self::Call => CallId::PREFIX,
            Self::KnowledgeBase => KnowledgeBaseId::PREFIX,
            Self::Campaign => CampaignId::PREFIX,
        }
    }

    /// Returns the name of the body field that holds the document's own id.
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
    /// The document's id, without its prefix.
    pub id: Uuid,
    /// The agent of a call or a campaign.
    pub agent_id: Option<AgentId>,
    /// The JSON object that the client stored, as text.
    pub body: String,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// Time of the last change.
    pub updated_at: OffsetDateTime,
}

/// The number and the size of the documents of a workspace.
#[derive(Debug, Clone, Copy, Default)]
pub struct DocumentUsage {
    /// Number of documents.
    pub documents: i64,
    /// Size of their bodies as JSON, and of responses that are stored for an `Idempotency-Key`, in
    /// bytes.
    pub bytes: i64,
}
