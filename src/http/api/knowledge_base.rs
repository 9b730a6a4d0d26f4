//! Knowledge bases.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::model::{document::Kind, id::KnowledgeBaseId};

/// A knowledge base to be created, with any further fields. One of the two names is required.
#[derive(ToSchema)]
pub struct CreateKnowledgeBase {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100, example = "Opening hours")]
    pub knowledge_base_name: Option<String>,
    /// The same, under another name.
    #[schema(min_length = 1, max_length = 100, example = "Opening hours")]
    pub name: Option<String>,
    /// Whatever else it is made of, such as `knowledge_base_texts` and `knowledge_base_urls`.
    #[serde(flatten)]
    pub further: BTreeMap<String, Value>,
}

/// A knowledge base, with whatever was stored of it.
#[derive(ToSchema)]
pub struct KnowledgeBase {
    /// Its id.
    pub id: KnowledgeBaseId,
    /// Its name.
    #[schema(example = "Opening hours")]
    pub name: String,
    /// Texts and URLs in it.
    #[schema(example = 2)]
    pub sources_count: u64,
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

/// A page of knowledge bases.
#[derive(ToSchema)]
pub struct KnowledgeBases {
    /// Newest first.
    pub knowledge_bases: Vec<KnowledgeBase>,
    /// How many there are in all.
    pub total: i64,
    /// Where the next page begins.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

super::documents::document_routes! {
    kind: Kind::KnowledgeBase, id: KnowledgeBaseId, plural: "knowledge_bases",
    path: "/v1/knowledge-base", item: "/v1/knowledge-base/{id}",
    create: CreateKnowledgeBase, body: KnowledgeBase, page: KnowledgeBases,
    parameters: (),
    summaries: ["List knowledge bases", "Create a knowledge base", "Get a knowledge base",
                "Change a knowledge base", "Delete a knowledge base"],
}
