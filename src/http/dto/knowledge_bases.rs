//! Bodies of knowledge bases, for the OpenAPI document: JSON documents with a few known fields.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::model::id::KnowledgeBaseId;

/// A knowledge base to create. One of the two names is required. All other fields are stored
/// too, except those that the service sets itself, such as `created_at`.
#[derive(ToSchema)]
pub struct CreateKnowledgeBase {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100, example = "Opening hours")]
    pub knowledge_base_name: Option<String>,
    /// An alias of `knowledge_base_name`. If one of the two is missing, it gets the value of the
    /// other.
    #[schema(min_length = 1, max_length = 100, example = "Opening hours")]
    pub name: Option<String>,
    /// Any other fields, such as `knowledge_base_texts` and `knowledge_base_urls`.
    #[serde(flatten)]
    pub additional_fields: BTreeMap<String, Value>,
}

/// A knowledge base with all its stored fields.
#[derive(ToSchema)]
pub struct KnowledgeBase {
    /// The id of the knowledge base.
    pub id: KnowledgeBaseId,
    /// The name of the knowledge base.
    #[schema(example = "Opening hours")]
    pub name: String,
    /// Number of texts and URLs in the knowledge base.
    #[schema(example = 2)]
    pub sources_count: u64,
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

/// A page of knowledge bases.
#[derive(ToSchema)]
pub struct KnowledgeBases {
    /// The knowledge bases, newest first.
    pub knowledge_bases: Vec<KnowledgeBase>,
    /// Total number of knowledge bases in the workspace.
    pub total: i64,
    /// Cursor of the next page, or null on the last page.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}
