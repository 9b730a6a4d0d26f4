-- Sessions of browsers, which hold a cookie instead of tokens.

-- A session as its bearer's cookie is believed; being used, it goes on. Nothing where it was not used for
-- longer than a session may be idle.
CREATE FUNCTION use_session(session_id uuid, moment timestamptz, idle interval)
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
                   lacks_second_factor(w.require_second_factor AND NOT s.by_passkey, u.id)
            FROM sessions s
            JOIN users u ON u.id = s.user_id
            JOIN workspaces w ON w.id = s.workspace_id
            LEFT JOIN memberships m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
            WHERE s.id = session_id AND s.refreshed_at > moment - idle;
    END
    $$;
REVOKE ALL ON FUNCTION use_session FROM PUBLIC;
GRANT EXECUTE ON FUNCTION use_session TO call2me_auth_app;
