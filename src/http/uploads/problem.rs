//! What a refused upload is answered with: status and code of each reason. They are listed in
//! `schema/upload.md`.

use hyper::{StatusCode, header::RETRY_AFTER};

use crate::{
    codec::epistula::EpistulaError, http::problem::Problem, ledger::uploads::UploadError,
    store::uploads::ArrivalError, types::refusal::Code,
};

impl From<EpistulaError> for Problem {
    fn from(error: EpistulaError) -> Self {
        let code = match error {
            EpistulaError::TooMany => {
                return Self::busy("too many signed requests at once");
            }
            EpistulaError::Clock { .. } => "clock",
            EpistulaError::Replayed => "replayed",
            EpistulaError::Key(_) | EpistulaError::Signature(_) => "bad-signature",
            _ => "not-signed",
        };
        Self::new(StatusCode::UNAUTHORIZED, code, error.to_string())
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        use StatusCode as S;
        let (status, code) = match &error {
            UploadError::Refused(refusal) => (refused(refusal.code), refusal.code.as_str()),
            UploadError::Unknown { .. } => (S::NOT_FOUND, "unknown-upload"),
            UploadError::Token => (S::FORBIDDEN, "wrong-token"),
            UploadError::Other { .. } => (S::BAD_REQUEST, "other-upload"),
            UploadError::Sealing { .. } => (S::CONFLICT, "sealing"),
            UploadError::HashesFirst => (S::CONFLICT, "hashes-first"),
            UploadError::Offset { .. } => (S::CONFLICT, "wrong-offset"),
            UploadError::Length { expected, found } if found > expected => {
                (S::PAYLOAD_TOO_LARGE, "too-long")
            }
            UploadError::Length { .. } => (S::BAD_REQUEST, "too-short"),
            UploadError::Incomplete { .. } => (S::CONFLICT, "incomplete"),
            UploadError::Committing => (S::CONFLICT, "committing"),
            UploadError::Committed => (S::CONFLICT, "committed"),
            UploadError::Quota { .. } | UploadError::Arriving => (S::TOO_MANY_REQUESTS, "quota"),
            UploadError::Space { .. } | UploadError::Full => (S::TOO_MANY_REQUESTS, "disk-full"),
            UploadError::Damaged(_) => (S::CONFLICT, "damaged"),
            UploadError::Arrival(arrival) if arrival.is_ours() => return Self::internal(error),
            UploadError::Arrival(ArrivalError::Sha256 { .. }) => {
                (S::UNPROCESSABLE_ENTITY, "wrong-sha256")
            }
            UploadError::Arrival(ArrivalError::Piece { .. }) => {
                (S::UNPROCESSABLE_ENTITY, "wrong-piece")
            }
            UploadError::Arrival(_) => (S::UNPROCESSABLE_ENTITY, "wrong-hashes"),
            UploadError::Ledger(_) => return Self::internal(error),
        };
        let problem = Self::new(status, code, error.to_string());
        match error.retry_after_s() {
            Some(seconds) => problem.with(RETRY_AFTER, &seconds.to_string()),
            None => problem,
        }
    }
}

fn refused(code: Code) -> StatusCode {
    match code {
        Code::BadSignature => StatusCode::UNAUTHORIZED,
        Code::NotListed => StatusCode::FORBIDDEN,
        Code::Late | Code::WrongRound | Code::WrongBase | Code::DuplicateSubmission => {
            StatusCode::CONFLICT
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}
