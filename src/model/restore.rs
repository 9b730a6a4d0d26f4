//! What was revoked after a backup was made, as the operator lists it: ids, one on each line, or
//! events of audit exports.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ValidationError,
    audit::Action,
    id::{ApiKeyId, ClientId, EventId, GrantId, Id as _, SessionId, UserId, WorkspaceId},
    scope::Role,
};

/// The revocations that a restored database lacks.
#[derive(Debug, Default)]
pub struct Revocations {
    /// API keys that were revoked.
    pub keys: BTreeSet<ApiKeyId>,
    /// OAuth clients that were deleted.
    pub clients: BTreeSet<ClientId>,
    /// OAuth grants that ended.
    pub grants: BTreeSet<GrantId>,
    /// OAuth clients some of whose grants ended.
    pub client_grants: BTreeSet<ClientId>,
    /// Workspaces that were deleted.
    pub workspaces: BTreeSet<WorkspaceId>,
    /// Users whose account was deleted.
    pub accounts: BTreeSet<UserId>,
    /// Members that were removed.
    pub members: BTreeSet<(WorkspaceId, UserId)>,
    /// API keys that were disabled.
    pub disabled_keys: BTreeSet<ApiKeyId>,
    /// OAuth clients whose secrets of the time of the backup ended.
    pub client_secrets: BTreeSet<ClientId>,
    /// Users whose password of the time of the backup was replaced.
    pub passwords: BTreeSet<UserId>,
    /// The new roles of members.
    pub roles: BTreeMap<(WorkspaceId, UserId), Role>,
    /// Events that restrict access in a way that only the operator can repeat.
    pub by_hand: Vec<ManualChange>,
}

/// A change that the operator has to repeat.
#[derive(Debug, Clone, Serialize)]
pub struct ManualChange {
    /// The event's id.
    pub event_id: EventId,
    /// The action of the event.
    pub action: &'static str,
    /// The id of the changed object.
    pub target: Option<String>,
}

/// An event of an audit export that restricts access.
#[derive(Debug)]
pub struct RestrictingEvent {
    /// The event's id. Ids are ordered by time.
    pub id: EventId,
    action: Action,
    target: Option<String>,
    metadata: Value,
    workspace: Option<WorkspaceId>,
}

/// The lines of the operator's files.
#[derive(Debug, Default)]
pub struct RevocationList {
    /// The ids.
    pub revocations: Revocations,
    /// The events. They may be older than the backup.
    pub events: Vec<RestrictingEvent>,
}

#[derive(Deserialize)]
struct EventLine {
    action: String,
    id: EventId,
    #[serde(default)]
    metadata: Value,
    target: Option<TargetLine>,
}

#[derive(Deserialize)]
struct TargetLine {
    id: String,
}

/// A line of an export with the hash chain as proof.
#[derive(Deserialize)]
struct ProofLine {
    event: Option<Value>,
    #[serde(rename = "sequence")]
    _sequence: i64,
}

impl RevocationList {
    /// Adds the lines of a file. `workspace` is that of an export: events do not name it. Returns
    /// the number of lines that were neither empty nor comments.
    ///
    /// # Errors
    /// [`ValidationError`] with the number of the first line that is neither a known id nor an
    /// event.
    pub fn add_file(
        &mut self,
        text: &str,
        workspace: Option<WorkspaceId>,
    ) -> Result<usize, ValidationError> {
        let mut count = 0;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            count += 1;
            let added = if line.starts_with('{') {
                self.add_event(line, workspace)
            } else {
                self.add_ids(line)
            };
            if added.is_none() {
                let number = index + 1;
                return Err(ValidationError::new(format!(
                    "line {number} is neither an id (key_…, session_…, grant_…, client_…, user_…, \
                     ws_…, or ws_… user_… for a member) nor an event of an audit export"
                )));
            }
        }
        Ok(count)
    }

    fn add_ids(&mut self, line: &str) -> Option<()> {
        let all = &mut self.revocations;
        if let Some((workspace, user)) = line.split_once(char::is_whitespace) {
            all.members.insert((workspace.parse().ok()?, user.trim_start().parse().ok()?));
            return Some(());
        }
        match line.split_once('_')?.0 {
            ApiKeyId::PREFIX => drop(all.keys.insert(line.parse().ok()?)),
            ClientId::PREFIX => drop(all.clients.insert(line.parse().ok()?)),
            GrantId::PREFIX => drop(all.grants.insert(line.parse().ok()?)),
            UserId::PREFIX => drop(all.accounts.insert(line.parse().ok()?)),
            WorkspaceId::PREFIX => drop(all.workspaces.insert(line.parse().ok()?)),
            // All sessions end.
            SessionId::PREFIX => drop(line.parse::<SessionId>().ok()?),
            _ => return None,
        }
        Some(())
    }

    fn add_event(&mut self, line: &str, workspace: Option<WorkspaceId>) -> Option<()> {
        let line: Value = serde_json::from_str(line).ok()?;
        let event = match ProofLine::deserialize(&line) {
            Ok(ProofLine { event, .. }) => event.filter(|event| !event.is_null()),
            Err(_) => Some(line),
        };
        // Retention has dropped the event.
        let Some(event) = event else { return Some(()) };
        let EventLine { action, id, metadata, target } = EventLine::deserialize(event).ok()?;
        let action = Action::from_name(&action)?;
        if is_restricting(action) {
            let target = target.map(|target| target.id);
            self.events.push(RestrictingEvent { id, action, target, metadata, workspace });
        }
        Some(())
    }
}

const fn is_restricting(action: Action) -> bool {
    matches!(
        action,
        Action::ApiKeyRevoked
            | Action::ApiKeyDisabled
            | Action::ApiKeyEnabled
            | Action::ApiKeyUpdated
            | Action::ClientDeleted
            | Action::ClientUpdated
            | Action::ClientSecretRotated
            | Action::ClientSecretRevoked
            | Action::GrantEnded
            | Action::GrantReuseDetected
            | Action::TokenRevoked
            | Action::MemberRemoved
            | Action::MemberRoleChanged
            | Action::PasswordChanged
            | Action::PasskeyRemoved
            | Action::SecondFactorAdded
            | Action::RecoveryCodesRenewed
            | Action::WorkspaceUpdated
            | Action::WorkspaceDeleted
    )
}

impl Revocations {
    /// Adds the effects of events that the restored database lacks.
    pub fn add_events(&mut self, mut events: Vec<RestrictingEvent>) {
        // An export is newest first.
        events.sort_by_key(|event| event.id);
        for event in events {
            if self.add_event(&event).is_none() {
                let RestrictingEvent { id, action, target, .. } = event;
                self.by_hand.push(ManualChange { event_id: id, action: action.as_str(), target });
            }
        }
    }

    /// `None` if the operator has to repeat the change.
    fn add_event(&mut self, event: &RestrictingEvent) -> Option<()> {
        let target = event.target.as_deref().unwrap_or_default();
        match event.action {
            Action::ApiKeyRevoked => drop(self.keys.insert(target.parse().ok()?)),
            Action::ApiKeyDisabled => drop(self.disabled_keys.insert(target.parse().ok()?)),
            Action::ApiKeyEnabled => drop(self.disabled_keys.remove(&target.parse().ok()?)),
            Action::ClientDeleted => drop(self.clients.insert(target.parse().ok()?)),
            Action::ClientSecretRotated | Action::ClientSecretRevoked => {
                self.client_secrets.insert(target.parse().ok()?);
            }
            Action::GrantEnded | Action::GrantReuseDetected | Action::TokenRevoked => {
                self.add_grants(target)?;
            }
            Action::MemberRemoved => {
                self.members.insert((event.workspace?, target.parse().ok()?));
            }
            Action::MemberRoleChanged => {
                let role = event.metadata.get("to").and_then(Value::as_str);
                let role = role.and_then(|role| role.parse().ok())?;
                self.roles.insert((event.workspace?, target.parse().ok()?), role);
            }
            Action::PasswordChanged => drop(self.passwords.insert(target.parse().ok()?)),
            Action::WorkspaceDeleted => drop(self.workspaces.insert(target.parse().ok()?)),
            _ => return None,
        }
        Some(())
    }

    /// Adds the grant that is the target. If the target is a client, the event does not say which
    /// of its grants ended.
    fn add_grants(&mut self, target: &str) -> Option<()> {
        match target.parse() {
            Ok(grant) => drop(self.grants.insert(grant)),
            Err(_) => drop(self.client_grants.insert(target.parse().ok()?)),
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id<T: From<Uuid>>(number: u128) -> T {
        Uuid::from_u128(number).into()
    }

    fn event(number: u128, action: &str, target: &str, metadata: &str) -> String {
        let id: EventId = id(number);
        format!(
            r#"{{"action":"{action}","actor":{{}},"at":"2026-01-01T00:00:00Z","id":"{id}",
                "metadata":{metadata},"request":{{}},"target":{{"id":"{target}","name":null}}}}"#
        )
        .replace('\n', "")
    }

    #[test]
    fn ids_and_events_are_collected() {
        let (key, user): (ApiKeyId, UserId) = (id(1), id(2));
        let (workspace, session): (WorkspaceId, SessionId) = (id(3), id(4));
        let mut list = RevocationList::default();
        let text = format!("# comment\n\n{key}\n{workspace} {user}\n{session}\r\n{user}\n");
        assert_eq!(list.add_file(&text, None).unwrap(), 4);
        // Newest first, as an export is.
        let export = [
            event(14, "api_key.enabled", &id::<ApiKeyId>(6).to_string(), "{}"),
            event(
                13,
                "member.role_changed",
                &user.to_string(),
                r#"{"from":"owner","to":"viewer"}"#,
            ),
            event(12, "member.role_changed", &user.to_string(), r#"{"from":"admin","to":"owner"}"#),
            event(11, "api_key.disabled", &id::<ApiKeyId>(6).to_string(), "{}"),
            event(10, "api_key.updated", &key.to_string(), "{}"),
            event(9, "request", &key.to_string(), "{}"),
        ];
        list.add_file(&export.join("\n"), Some(workspace)).unwrap();
        let RevocationList { mut revocations, events } = list;
        assert_eq!(events.len(), 5, "a request restricts nothing");
        revocations.add_events(events);
        assert_eq!(revocations.keys.into_iter().collect::<Vec<_>>(), [key]);
        assert!(revocations.accounts.contains(&user));
        assert!(revocations.members.contains(&(workspace, user)));
        assert!(revocations.disabled_keys.is_empty(), "it was enabled again");
        assert_eq!(revocations.roles[&(workspace, user)], Role::Viewer);
        assert_eq!(revocations.by_hand.len(), 1);
        assert_eq!(revocations.by_hand[0].event_id.uuid(), Uuid::from_u128(10));
    }

    #[test]
    fn event_of_member_without_workspace_is_left_to_operator() {
        let mut list = RevocationList::default();
        let removed = event(1, "member.removed", &id::<UserId>(2).to_string(), "{}");
        let proof = format!(r#"{{"event":{removed},"event_id":"x","hash":"y","sequence":1}}"#);
        let pruned = r#"{"event":null,"event_id":"x","hash":"y","sequence":1}"#;
        list.add_file(&format!("{proof}\n{pruned}"), None).unwrap();
        let mut revocations = Revocations::default();
        revocations.add_events(list.events);
        assert_eq!((revocations.members.len(), revocations.by_hand.len()), (0, 1));
    }

    #[test]
    fn unknown_line_is_refused_with_its_number() {
        for text in ["key_x", "\nsk_call2me_live_abc", "{}", "ws_1 user_2", "[1]"] {
            let error = RevocationList::default().add_file(text, None).unwrap_err().to_string();
            let number = text.lines().count();
            assert!(error.contains(&format!("line {number} is neither")), "{error}");
        }
    }
}
