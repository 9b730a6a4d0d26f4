//! Parameters that several routes have, as the OpenAPI document describes them.

use utoipa::IntoParams;

use crate::model::id::{ApiKeyId, RequestId};

/// The parameters of a paginated list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by extract::Query; here for the document")]
pub struct PageParams {
    /// Maximum number of items per page. The default is 50.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    /// The `next_cursor` of the previous page.
    cursor: Option<String>,
    /// Number of items to skip. It cannot be combined with `cursor`.
    #[param(minimum = 0, maximum = 100_000)]
    offset: Option<u32>,
}

/// The filter parameters of the audit log.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by extract::Query::event_filter; here for the document")]
pub struct EventFilterParams {
    /// `true`: only changes, such as `api_key.created`, without the events of plain requests.
    changes: Option<bool>,
    /// `false`: without requests for dashboard pages. Requests to the API remain.
    pages: Option<bool>,
    /// Only events of this API key.
    #[param(value_type = Option<ApiKeyId>)]
    key_id: Option<String>,
    /// Only events of this actor: the id of an API key, a user or an OAuth client.
    actor_id: Option<String>,
    /// Only events with this action, such as `api_key.created`.
    action: Option<String>,
    /// Only requests with this HTTP method.
    method: Option<String>,
    /// Only requests with this response status.
    #[param(minimum = 100, maximum = 599)]
    status: Option<u16>,
    /// Only requests from this IP address.
    ip: Option<String>,
    /// Only events at or after this time.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Only events before this time.
    #[param(format = DateTime)]
    until: Option<String>,
    /// Only events of this request.
    #[param(value_type = Option<RequestId>)]
    request_id: Option<String>,
}

/// The header that makes a request to create something safe to retry.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "read by extract::IdempotentJson; here for the document")]
pub struct IdempotencyKeyHeader {
    /// Makes a retry safe. For 24 hours, a request with the same key and the same body gets the
    /// stored response of the first request, with `Idempotency-Replayed: true`, and nothing is
    /// created twice. A key is scoped to the caller, the method and the path.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255, pattern = "^[!-~]+$")]
    idempotency_key: Option<String>,
}
