//! The answer to a failed request.

use axum::{
    Json,
    extract::rejection::{JsonRejection, QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use imastage_client::wire::Refusal;

/// A refusal, and its HTTP status.
pub(super) struct Error {
    status: StatusCode,
    why: String,
}

impl Error {
    pub(super) fn new(status: StatusCode, why: impl ToString) -> Error {
        Error { status, why: why.to_string() }
    }

    pub(super) fn bad(why: impl ToString) -> Error {
        Error::new(StatusCode::BAD_REQUEST, why)
    }

    pub(super) fn internal(why: impl ToString) -> Error {
        Error::new(StatusCode::INTERNAL_SERVER_ERROR, why)
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Error {
        Error::new(rejection.status(), rejection.body_text())
    }
}

impl From<JsonRejection> for Error {
    fn from(rejection: JsonRejection) -> Error {
        Error::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.status, Json(Refusal { error: self.why })).into_response()
    }
}
