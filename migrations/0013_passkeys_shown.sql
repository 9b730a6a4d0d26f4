-- Sessions know which passkey they have shown, and only as long as it is there.

-- Whoever made one for an address that nobody had verified may not be who has the address.
DELETE FROM passkeys p USING users u WHERE u.id = p.user_id AND u.email_verified_at IS NULL;

-- No device makes keys so long.
DELETE FROM passkeys WHERE octet_length(public_key) > 2048;
ALTER TABLE passkeys ADD CHECK (octet_length(public_key) <= 2048);

ALTER TABLE sessions ADD COLUMN passkey_id uuid REFERENCES passkeys ON DELETE SET NULL;
CREATE INDEX sessions_passkey_idx ON sessions (passkey_id) WHERE passkey_id IS NOT NULL;
GRANT UPDATE (passkey_id) ON sessions TO call2me_auth_app;

CREATE OR REPLACE FUNCTION find_sessions(session_ids uuid[])
    RETURNS TABLE (id uuid, user_id uuid, workspace_id uuid, email text, full_name text, role text,
                   expires_at timestamptz, ended_at timestamptz, rate_limit_per_minute integer,
                   lacks_second_factor boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT s.id, s.user_id, s.workspace_id, u.email, u.full_name, m.role, s.expires_at,
               s.ended_at, w.rate_limit_per_minute,
               lacks_second_factor(w.require_second_factor AND s.passkey_id IS NULL, u.id)
        FROM sessions s
        JOIN users u ON u.id = s.user_id
        JOIN workspaces w ON w.id = s.workspace_id
        LEFT JOIN memberships m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
        WHERE s.id = ANY (session_ids)
    $$;

CREATE OR REPLACE FUNCTION use_session(session_id uuid, moment timestamptz, idle interval)
    RETURNS TABLE (user_id uuid, workspace_id uuid, email text, full_name text, role text,
                   expires_at timestamptz, ended_at timestamptz, rate_limit_per_minute integer,
                   lacks_second_factor boolean)
    LANGUAGE plpgsql ROWS 1 SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        -- Not each time, which would write a row for each page.
        UPDATE sessions s SET refreshed_at = moment, last_seen_at = moment
        WHERE s.id = session_id AND s.ended_at IS NULL AND s.expires_at > moment
          AND s.refreshed_at > moment - idle AND s.refreshed_at < moment - interval '5 minutes';
        RETURN QUERY
            SELECT s.user_id, s.workspace_id, u.email, u.full_name, m.role, s.expires_at, s.ended_at,
                   w.rate_limit_per_minute,
                   lacks_second_factor(w.require_second_factor AND s.passkey_id IS NULL, u.id)
            FROM sessions s
            JOIN users u ON u.id = s.user_id
            JOIN workspaces w ON w.id = s.workspace_id
            LEFT JOIN memberships m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
            WHERE s.id = session_id AND s.refreshed_at > moment - idle;
    END
    $$;

ALTER TABLE sessions DROP COLUMN by_passkey;

-- Nodes are told when a session has shown a passkey, and when that passkey is gone.
DROP TRIGGER sessions_announce ON sessions;
CREATE CONSTRAINT TRIGGER sessions_announce AFTER UPDATE ON sessions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((OLD.user_id, OLD.workspace_id, OLD.expires_at, OLD.ended_at, OLD.passkey_id)
          IS DISTINCT FROM (NEW.user_id, NEW.workspace_id, NEW.expires_at, NEW.ended_at, NEW.passkey_id))
    EXECUTE FUNCTION announce();
