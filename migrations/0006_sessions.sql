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
    -- Refresh tokens are derived, not stored: a MAC of session and generation, under this key. It
    -- is encrypted under a key that the database does not hold.
    refresh_seed bytea NOT NULL CHECK (octet_length(refresh_seed) = 68),
    refresh_generation integer NOT NULL DEFAULT 0,
    refreshed_at timestamptz NOT NULL,
    -- SHA-256 of the secret in the session cookie. The secret has 256 random bits, so it needs no
    -- slow hash.
    cookie_digest bytea NOT NULL CHECK (octet_length(cookie_digest) = 32),
    -- The number of times that the cookie, the access tokens and the refresh token were replaced
    -- together. An access token of an earlier generation is not valid.
    credential_generation integer NOT NULL DEFAULT 0,
    -- The absolute expiry. A refresh does not extend it.
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    end_reason text,
    -- The passkey that the session was last verified with. A passkey counts as two factors.
    passkey_id uuid REFERENCES passkeys ON DELETE SET NULL
);
-- Also for the newest sessions of a user: ids grow with time.
CREATE INDEX sessions_user_idx ON sessions (user_id, id DESC);
-- To end them: a user may have many that have ended.
CREATE INDEX sessions_not_ended_idx ON sessions (user_id, id DESC) WHERE ended_at IS NULL;
CREATE INDEX sessions_passkey_idx ON sessions (passkey_id) WHERE passkey_id IS NOT NULL;
CREATE TRIGGER sessions_reject_reactivation BEFORE UPDATE ON sessions FOR EACH ROW
    WHEN (OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at)
    EXECUTE FUNCTION reject_reactivation('ended session');

GRANT SELECT, INSERT,
    UPDATE (workspace_id, last_seen_at, refresh_seed, refresh_generation, refreshed_at,
            cookie_digest, credential_generation, ended_at, end_reason, passkey_id)
    ON sessions TO call2me_auth_app;
ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
-- A session gives access to its workspace, so its user must be a member. One that ends gives none.
CREATE POLICY sessions_by_user ON sessions TO call2me_auth_app
    USING (user_id = (SELECT current_user_id()))
    WITH CHECK (user_id = (SELECT current_user_id())
                AND (ended_at IS NOT NULL OR EXISTS (
                    SELECT FROM memberships m
                    WHERE m.workspace_id = sessions.workspace_id
                      AND m.user_id = sessions.user_id)));

------------------------------------------------------------------------------------------------
-- Functions

-- Returns sessions by their ids, before the caller is authenticated. `role` is NULL if the user is
-- no longer a member of the workspace.
CREATE FUNCTION find_sessions(p_ids uuid[])
    RETURNS TABLE (id uuid, user_id uuid, workspace_id uuid, email text, full_name text, role text,
                   expires_at timestamptz, ended_at timestamptz, rate_limit_per_minute integer,
                   lacks_second_factor boolean, cookie_digest bytea, credential_generation integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT s.id, s.user_id, s.workspace_id, u.email, u.full_name, m.role, s.expires_at,
               s.ended_at, w.rate_limit_per_minute,
               lacks_second_factor(w.require_second_factor AND s.passkey_id IS NULL, u.id),
               s.cookie_digest, s.credential_generation
        FROM sessions s
        JOIN users u ON u.id = s.user_id
        JOIN workspaces w ON w.id = s.workspace_id
        LEFT JOIN memberships m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
        WHERE s.id = ANY (p_ids)
    $$;

-- Returns the session of a cookie and restarts its idle time. No row if the digest is not that of
-- the session's cookie, or if the session was last used before `p_idle_since`. The use is recorded
-- only if the last recorded one is from before `p_recorded_before`: otherwise each page would be a
-- write.
CREATE FUNCTION touch_session(
    p_id uuid, p_cookie_digest bytea, p_now timestamptz, p_idle_since timestamptz,
    p_recorded_before timestamptz
)
    RETURNS TABLE (user_id uuid, workspace_id uuid, email text, full_name text, role text,
                   expires_at timestamptz, ended_at timestamptz, rate_limit_per_minute integer,
                   lacks_second_factor boolean, cookie_digest bytea, credential_generation integer)
    LANGUAGE plpgsql ROWS 1 SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        UPDATE sessions s SET refreshed_at = p_now, last_seen_at = p_now
        WHERE s.id = p_id AND s.cookie_digest = p_cookie_digest AND s.ended_at IS NULL
          AND s.expires_at > p_now AND s.refreshed_at > p_idle_since
          AND s.refreshed_at < p_recorded_before;
        RETURN QUERY
            SELECT s.user_id, s.workspace_id, u.email, u.full_name, m.role, s.expires_at,
                   s.ended_at, w.rate_limit_per_minute,
                   lacks_second_factor(w.require_second_factor AND s.passkey_id IS NULL, u.id),
                   s.cookie_digest, s.credential_generation
            FROM sessions s
            JOIN users u ON u.id = s.user_id
            JOIN workspaces w ON w.id = s.workspace_id
            LEFT JOIN memberships m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
            WHERE s.id = p_id AND s.cookie_digest = p_cookie_digest
              AND s.refreshed_at > p_idle_since;
    END
    $$;

-- Sets the workspace of a transaction that has a user, and records it as the user's last workspace.
-- Returns true for a new device: none of the user's newest 100 sessions is from this network, or
-- none has this user agent, ignoring version numbers. A user's first session is not a new device.
--
-- It runs at each sign-in, so it compares in the database instead of transferring 100 rows.
CREATE FUNCTION set_workspace_and_check_device(
    p_workspace_id uuid, p_issued_at bigint, p_key_id bytea, p_mac bytea, p_network inet,
    p_user_agent text
) RETURNS boolean
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    AS $$
    DECLARE
        own_id CONSTANT uuid := current_user_id();
        unversioned_agent CONSTANT text :=
            regexp_replace(coalesce(p_user_agent, ''), '[0-9.]+', '', 'g');
    BEGIN
        PERFORM set_context(p_workspace_id, own_id, p_issued_at, p_key_id, p_mac);
        UPDATE users SET last_workspace_id = p_workspace_id
        WHERE id = own_id AND last_workspace_id IS DISTINCT FROM p_workspace_id;
        IF NOT EXISTS (SELECT FROM sessions WHERE user_id = own_id) THEN
            RETURN false;
        END IF;
        RETURN NOT (
            EXISTS (
                SELECT FROM (SELECT ip FROM sessions WHERE user_id = own_id
                             ORDER BY id DESC LIMIT 100) newest
                WHERE ip <<= p_network)
            AND EXISTS (
                SELECT FROM (SELECT user_agent FROM sessions WHERE user_id = own_id
                             ORDER BY id DESC LIMIT 100) newest
                WHERE regexp_replace(coalesce(user_agent, ''), '[0-9.]+', '', 'g')
                      = unversioned_agent));
    END
    $$;

REVOKE ALL ON FUNCTION find_sessions, touch_session, set_workspace_and_check_device FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_sessions, touch_session, set_workspace_and_check_device
    TO call2me_auth_app;
