-- Sessions of users.

CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- Switching to another workspace changes it.
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    ip inet,
    user_agent text,
    -- Refresh tokens are derived, not stored: a MAC of session, seed and generation, under a key that
    -- the database does not hold.
    refresh_seed bytea NOT NULL CHECK (octet_length(refresh_seed) = 32),
    refresh_generation integer NOT NULL DEFAULT 0,
    refreshed_at timestamptz NOT NULL,
    -- The absolute expiry. A refresh does not extend it.
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    end_reason text,
    -- The passkey that the session was last verified with. A passkey counts as two factors.
    passkey_id uuid REFERENCES passkeys ON DELETE SET NULL
);
-- Also for the newest sessions of a user: ids grow with time.
CREATE INDEX sessions_user_idx ON sessions (user_id, id DESC);
CREATE INDEX sessions_passkey_idx ON sessions (passkey_id) WHERE passkey_id IS NOT NULL;
CREATE TRIGGER sessions_stay_ended BEFORE UPDATE ON sessions FOR EACH ROW
    WHEN (OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at)
    EXECUTE FUNCTION stay_ended('the ended session');

GRANT SELECT, INSERT,
    UPDATE (workspace_id, last_seen_at, refresh_generation, refreshed_at, ended_at, end_reason,
            passkey_id)
    ON sessions TO call2me_auth_app;
ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
CREATE POLICY sessions_own ON sessions TO call2me_auth_app
    USING (user_id = current_person()) WITH CHECK (user_id = current_person());

------------------------------------------------------------------------------------------------
-- Functions

-- Returns sessions by their ids, before the caller is authenticated. `role` is NULL if the user is
-- no longer a member of the workspace.
CREATE FUNCTION find_sessions(session_ids uuid[])
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

-- Returns the session of a cookie and restarts its idle time. No row if the session was unused for
-- longer than `idle`.
CREATE FUNCTION use_session(session_id uuid, moment timestamptz, idle interval)
    RETURNS TABLE (user_id uuid, workspace_id uuid, email text, full_name text, role text,
                   expires_at timestamptz, ended_at timestamptz, rate_limit_per_minute integer,
                   lacks_second_factor boolean)
    LANGUAGE plpgsql ROWS 1 SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        -- Not for each page: that would be one write per page.
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

-- Sets the workspace of a transaction that has a user, and records it as the user's last workspace.
-- Returns true for a new device: none of the user's newest 100 sessions is from this network, or none
-- has this user agent, version numbers aside. A user's first session is not a new device.
--
-- It runs at each sign-in, so it compares in the database instead of transferring 100 rows.
CREATE FUNCTION enter_workspace(workspace uuid, network inet, client text) RETURNS boolean
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    AS $$
    DECLARE
        person CONSTANT uuid := current_person();
        like_client CONSTANT text := regexp_replace(coalesce(client, ''), '[0-9.]+', '', 'g');
    BEGIN
        PERFORM set_config('call2me.workspace_id', workspace::text, true);
        UPDATE users SET last_workspace_id = workspace
        WHERE id = person AND last_workspace_id IS DISTINCT FROM workspace;
        IF NOT EXISTS (SELECT FROM sessions WHERE user_id = person) THEN
            RETURN false;
        END IF;
        RETURN NOT (
            EXISTS (
                SELECT FROM (SELECT ip FROM sessions WHERE user_id = person
                             ORDER BY id DESC LIMIT 100) newest
                WHERE ip <<= network)
            AND EXISTS (
                SELECT FROM (SELECT user_agent FROM sessions WHERE user_id = person
                             ORDER BY id DESC LIMIT 100) newest
                WHERE regexp_replace(coalesce(user_agent, ''), '[0-9.]+', '', 'g') = like_client));
    END
    $$;

REVOKE ALL ON FUNCTION find_sessions, use_session, enter_workspace FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_sessions, use_session, enter_workspace TO call2me_auth_app;
