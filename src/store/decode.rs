//! Decoding of columns into the ids, roles, scopes, and purposes and algorithms of keys of the
//! model.

use sqlx::{
    Decode, Postgres, Type, error::BoxDynError, postgres::PgTypeInfo, postgres::PgValueRef,
};
use uuid::Uuid;

use crate::model::{
    id::{
        AgentId, ApiKeyId, ClientId, EventId, GrantId, InvitationId, PasskeyId, RequestId,
        SessionId, SigningKeyId, TransactionId, UserId, WorkspaceId,
    },
    scope::{Role, Scope},
    signing_key::{KeyPurpose, SigningAlgorithm},
};

macro_rules! from_uuid {
    ($($name:ty),*) => {$(
        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <Uuid as Type<Postgres>>::type_info()
            }
        }

        impl<'r> Decode<'r, Postgres> for $name {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                Ok(<Uuid as Decode<Postgres>>::decode(value)?.into())
            }
        }
    )*};
}

macro_rules! from_text {
    ($($name:ty),*) => {$(
        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <String as Type<Postgres>>::type_info()
            }

            fn compatible(ty: &PgTypeInfo) -> bool {
                <String as Type<Postgres>>::compatible(ty)
            }
        }

        impl<'r> Decode<'r, Postgres> for $name {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                Ok(<&str as Decode<Postgres>>::decode(value)?.parse()?)
            }
        }
    )*};
}

from_uuid!(
    AgentId,
    ApiKeyId,
    ClientId,
    EventId,
    GrantId,
    RequestId,
    SessionId,
    InvitationId,
    PasskeyId,
    SigningKeyId,
    TransactionId,
    UserId,
    WorkspaceId
);
from_text!(KeyPurpose, Role, Scope, SigningAlgorithm);
