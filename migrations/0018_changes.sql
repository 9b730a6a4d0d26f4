-- What somebody changed, without the calls of the API in between, which are a thousand times as many.
CREATE INDEX audit_events_changes_idx ON audit_events (workspace_id, id) WHERE action <> 'request';
