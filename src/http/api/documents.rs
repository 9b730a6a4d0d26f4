//! Routes of agents, calls, knowledge bases and campaigns, which share five handlers.
//!
//! Each kind is a JSON document in the store. `document_routes!` defines the handlers of a kind,
//! with its own types in the OpenAPI document; the functions here do the work. The rules of each
//! kind are in [`crate::resources::document_rules`].

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use uuid::Uuid;

use super::{ApiResult, CreationOutcome, IdempotentCreated};
use crate::{
    http::{
        App,
        endpoint::HandlerResponse,
        extract::{IdempotentJson, Query},
    },
    model::{
        document::{Document, DocumentKind},
        fields::Fields,
        id,
        principal::Caller,
    },
    resources::document_rules::render,
};

/// A response body that is serialized JSON.
pub struct RawJson(String);

impl RawJson {
    pub(super) fn from_document(kind: DocumentKind, document: &Document) -> Self {
        Self(render(kind, document))
    }
}

impl IntoResponse for RawJson {
    fn into_response(self) -> Response {
        let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (content_type, Body::from(self.0)).into_response()
    }
}

impl HandlerResponse for RawJson {}

/// Lists a page of documents in a field with the name `plural`. Calls can be filtered by
/// `agent_id`.
pub(super) async fn list(
    app: &App,
    caller: &Caller,
    kind: DocumentKind,
    plural: &str,
    query: &Query,
) -> ApiResult<RawJson> {
    let agent = match kind {
        DocumentKind::Call => query.parse_as("agent_id", "the id of an agent")?,
        _ => None,
    };
    let (page, total) = app.resources.list(caller, kind, agent, query.page()?).await?;
    let cursor = page.next_cursor(|document| document.id);
    let cursor = cursor.map_or("null".to_owned(), |cursor| format!("\"{cursor}\""));
    let mut json = format!(r#"{{"{plural}":["#);
    // A page may be large, so no more than one copy of it is in memory at a time.
    for (index, document) in page.items.into_iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        json.push_str(&render(kind, &document));
    }
    json.extend([r#"],"total":"#, &total.to_string(), r#","next_cursor":"#, &cursor, "}"]);
    json.shrink_to_fit();
    Ok(RawJson(json))
}

pub(super) async fn create(
    app: &App,
    caller: &Caller,
    kind: DocumentKind,
    path: &str,
    IdempotentJson { body, attempt }: IdempotentJson<Fields>,
) -> ApiResult<IdempotentCreated> {
    let mut transaction = match IdempotentCreated::begin(app, caller, attempt).await? {
        CreationOutcome::New(transaction) => transaction,
        CreationOutcome::Replayed(response) => return Ok(response),
    };
    let (document, audited) = app.resources.create(transaction.tx(), caller, kind, body).await?;
    let location = format!("{path}/{}", id::format(kind.prefix(), document.id));
    IdempotentCreated::finish(transaction, audited, location, render(kind, &document)).await
}

pub(super) async fn get(
    app: &App,
    caller: &Caller,
    kind: DocumentKind,
    id: Uuid,
) -> ApiResult<RawJson> {
    Ok(RawJson::from_document(kind, &app.resources.get(caller, kind, id).await?))
}

pub(super) async fn update(
    app: &App,
    caller: &Caller,
    kind: DocumentKind,
    id: Uuid,
    body: Fields,
) -> ApiResult<RawJson> {
    Ok(RawJson::from_document(kind, &app.resources.update(caller, kind, id, body).await?))
}

/// Defines the handlers `list`, `create`, `get`, `update` and `delete` of a kind of document.
///
/// Each expansion is in a module of its own, so all paths are absolute or relative to that module.
macro_rules! document_routes {
    (
        kind: $kind:expr, id: $id:ty, plural: $plural:literal,
        path: $path:literal, item: $item:literal,
        create: $create:ty, body: $body:ty, page: $page:ty,
        parameters: ($($parameter:tt)*),
        summaries: [
            $list_summary:literal, $create_summary:literal, $get_summary:literal,
            $update_summary:literal, $delete_summary:literal
        ],
    ) => {
        #[doc = $list_summary]
        #[utoipa::path(get, path = $path, tag = "Resources", summary = $list_summary,
            params(crate::http::dto::parameters::PageParams, $($parameter)*),
            responses((status = 200, body = $page)))]
        pub async fn list(
            caller: crate::http::extract::Authorized<crate::http::extract::ReadOnly>,
            axum::extract::State(app): axum::extract::State<crate::http::App>,
            query: crate::http::extract::Query,
        ) -> super::ApiResult<super::RawJson> {
            super::list(&app, &caller, $kind, $plural, &query).await
        }

        #[doc = $create_summary]
        #[utoipa::path(post, path = $path, tag = "Resources", summary = $create_summary,
            request_body = $create, params(crate::http::dto::parameters::IdempotencyKeyHeader),
            responses((status = 201, body = $body), (status = 409)))]
        pub async fn create(
            caller: crate::http::extract::Authorized<crate::http::extract::Write>,
            axum::extract::State(app): axum::extract::State<crate::http::App>,
            creation: crate::http::extract::IdempotentJson<crate::model::fields::Fields>,
        ) -> super::ApiResult<super::IdempotentCreated> {
            super::create(&app, &caller, $kind, $path, creation).await
        }

        #[doc = $get_summary]
        #[utoipa::path(get, path = $item, tag = "Resources", summary = $get_summary,
            params(("id" = $id, Path)), responses((status = 200, body = $body), (status = 404)))]
        pub async fn get(
            caller: crate::http::extract::Authorized<crate::http::extract::ReadOnly>,
            axum::extract::State(app): axum::extract::State<crate::http::App>,
            crate::http::extract::PathId(id): crate::http::extract::PathId<$id>,
        ) -> super::ApiResult<super::RawJson> {
            use crate::model::id::Id as _;
            super::get(&app, &caller, $kind, id.uuid()).await
        }

        #[doc = $update_summary]
        #[utoipa::path(patch, path = $item, tag = "Resources", summary = $update_summary,
            params(("id" = $id, Path)), request_body = serde_json::Map<String, serde_json::Value>,
            responses((status = 200, body = $body), (status = 404)))]
        pub async fn update(
            caller: crate::http::extract::Authorized<crate::http::extract::Write>,
            axum::extract::State(app): axum::extract::State<crate::http::App>,
            crate::http::extract::PathId(id): crate::http::extract::PathId<$id>,
            crate::http::extract::Json(body): crate::http::extract::Json<
                crate::model::fields::Fields,
            >,
        ) -> super::ApiResult<super::RawJson> {
            use crate::model::id::Id as _;
            super::update(&app, &caller, $kind, id.uuid(), body).await
        }

        #[doc = $delete_summary]
        #[utoipa::path(delete, path = $item, tag = "Resources", summary = $delete_summary,
            params(("id" = $id, Path)), responses((status = 204), (status = 404)))]
        pub async fn delete(
            caller: crate::http::extract::Authorized<crate::http::extract::Write>,
            axum::extract::State(app): axum::extract::State<crate::http::App>,
            crate::http::extract::PathId(id): crate::http::extract::PathId<$id>,
        ) -> super::ApiResult<axum::http::StatusCode> {
            use crate::model::id::Id as _;
            app.resources.delete(&caller, $kind, id.uuid()).await?;
            Ok(axum::http::StatusCode::NO_CONTENT)
        }
    };
}

/// Routes of voice agents.
pub mod agents {
    use crate::{
        http::dto::agents::{Agent, Agents, CreateAgent},
        model::{document::DocumentKind, id::AgentId},
    };

    document_routes! {
        kind: DocumentKind::Agent, id: AgentId, plural: "agents",
        path: "/v1/agents", item: "/v1/agents/{id}",
        create: CreateAgent, body: Agent, page: Agents,
        parameters: (),
        summaries: ["List agents", "Create an agent", "Get an agent", "Update an agent", "Delete an agent"],
    }
}

/// Routes of phone calls, which can also be ended.
pub mod calls {
    use super::{ApiResult, RawJson};
    use crate::{
        http::{
            App,
            dto::calls::{Call, Calls, CreateCall},
            extract::{Authorized, PathId, Write},
        },
        model::{
            document::DocumentKind,
            id::{AgentId, CallId, Id as _},
        },
    };

    document_routes! {
        kind: DocumentKind::Call, id: CallId, plural: "calls",
        path: "/v1/calls", item: "/v1/calls/{id}",
        create: CreateCall, body: Call, page: Calls,
        parameters: (("agent_id" = Option<AgentId>, Query, description = "Only calls of this agent")),
        summaries: ["List calls", "Place a call", "Get a call", "Update a call", "Delete a call"],
    }

    /// End a call
    ///
    /// Ending a call that has already ended changes nothing.
    #[utoipa::path(post, path = "/v1/calls/{id}/end", tag = "Resources", params(("id" = CallId, Path)),
        responses((status = 200, body = Call), (status = 404)))]
    pub async fn end(
        caller: Authorized<Write>,
        axum::extract::State(app): axum::extract::State<App>,
        PathId(id): PathId<CallId>,
    ) -> ApiResult<RawJson> {
        let call = app.resources.end_call(&caller, id.uuid()).await?;
        Ok(RawJson::from_document(DocumentKind::Call, &call))
    }
}

/// Routes of campaigns.
pub mod campaigns {
    use crate::{
        http::dto::campaigns::{Campaign, Campaigns, CreateCampaign},
        model::{document::DocumentKind, id::CampaignId},
    };

    document_routes! {
        kind: DocumentKind::Campaign, id: CampaignId, plural: "campaigns",
        path: "/v1/campaigns", item: "/v1/campaigns/{id}",
        create: CreateCampaign, body: Campaign, page: Campaigns,
        parameters: (),
        summaries: ["List campaigns", "Create a campaign", "Get a campaign", "Update a campaign",
                    "Delete a campaign"],
    }
}

/// Routes of knowledge bases.
pub mod knowledge_base {
    use crate::{
        http::dto::knowledge_bases::{CreateKnowledgeBase, KnowledgeBase, KnowledgeBases},
        model::{document::DocumentKind, id::KnowledgeBaseId},
    };

    document_routes! {
        kind: DocumentKind::KnowledgeBase, id: KnowledgeBaseId, plural: "knowledge_bases",
        path: "/v1/knowledge-base", item: "/v1/knowledge-base/{id}",
        create: CreateKnowledgeBase, body: KnowledgeBase, page: KnowledgeBases,
        parameters: (),
        summaries: ["List knowledge bases", "Create a knowledge base", "Get a knowledge base",
                    "Update a knowledge base", "Delete a knowledge base"],
    }
}
