//! Routes of knowledge bases: JSON documents with a few known fields.
//!
//! `document_routes!` below defines `list`, `create`, `get`, `update` and `delete`; the logic is in
//! `documents.rs`.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::model::{document::DocumentKind, id::KnowledgeBaseId};

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

super::documents::document_routes! {
    kind: DocumentKind::KnowledgeBase, id: KnowledgeBaseId, plural: "knowledge_bases",
    path: "/v1/knowledge-base", item: "/v1/knowledge-base/{id}",
    create: CreateKnowledgeBase, body: KnowledgeBase, page: KnowledgeBases,
    parameters: (),
    summaries: ["List knowledge bases", "Create a knowledge base", "Get a knowledge base",
                "Update a knowledge base", "Delete a knowledge base"],
}
