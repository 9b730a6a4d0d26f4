//! Phone calls.

use std::collections::BTreeMap;

use axum::extract::State;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Answer, documents::RawJson};
use crate::{
    http::{
        App,
        extract::{Authorized, PathId, Write},
    },
    model::{
        document::Kind,
        id::{AgentId, CallId, Id},
    },
};

/// A call to be placed, with any further fields.
#[derive(ToSchema)]
pub struct CreateCall {
    /// An agent of this workspace.
    pub agent_id: AgentId,
    /// Whom to call, in E.164 form.
    #[schema(pattern = "^\\+[1-9][0-9]{6,14}$", example = "+14155550100")]
    pub to_number: String,
    /// Whatever else it is made of, such as `topic` and `metadata`.
    #[serde(flatten)]
    pub further: BTreeMap<String, Value>,
}

/// A call, with whatever was stored of it.
#[derive(ToSchema)]
pub struct Call {
    /// Its id.
    pub call_id: CallId,
    /// Who speaks.
    pub agent_id: AgentId,
    /// Whom it goes to.
    #[schema(example = "+14155550100")]
    pub to_number: String,
    /// `registered` or `ended`.
    #[schema(example = "registered")]
    pub call_status: String,
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

/// A page of calls.
#[derive(ToSchema)]
pub struct Calls {
    /// Newest first.
    pub calls: Vec<Call>,
    /// How many there are in all.
    pub total: i64,
    /// Where the next page begins.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

super::documents::document_routes! {
    kind: Kind::Call, id: CallId, plural: "calls",
    path: "/v1/calls", item: "/v1/calls/{id}",
    create: CreateCall, body: Call, page: Calls,
    parameters: (("agent_id" = Option<AgentId>, Query, description = "Only calls of this agent")),
    summaries: ["List calls", "Place a call", "Get a call", "Change a call", "Delete a call"],
}

/// End a call
///
/// A call that has ended stays as it is.
#[utoipa::path(post, path = "/v1/calls/{id}/end", tag = "Resources", params(("id" = CallId, Path)),
    responses((status = 200, body = Call), (status = 404)))]
pub async fn end(
    caller: Authorized<Write>,
    State(app): State<App>,
    PathId(id): PathId<CallId>,
) -> Answer<RawJson> {
    let call = app.resources.end_call(&caller, id.uuid()).await?;
    Ok(RawJson::of(Kind::Call, &call))
}
