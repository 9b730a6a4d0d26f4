-- A workspace may ask its people for a second factor; and recovery codes are made anew.

ALTER TABLE workspaces ADD COLUMN require_second_factor boolean NOT NULL DEFAULT false;
GRANT UPDATE (require_second_factor) ON workspaces TO call2me_auth_app;

-- Whether a session was begun with a passkey, which takes two factors by itself.
ALTER TABLE sessions ADD COLUMN by_passkey boolean NOT NULL DEFAULT false;
GRANT UPDATE (by_passkey) ON sessions TO call2me_auth_app;

-- Each set of recovery codes is derived from its number.
ALTER TABLE totp_factors ADD COLUMN recovery_round integer NOT NULL DEFAULT 0;

-- Whether a person of a workspace lacks what it asks for.
CREATE FUNCTION lacks_second_factor(required boolean, person uuid) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
        SELECT required AND NOT EXISTS (
            SELECT FROM totp_factors WHERE user_id = person AND confirmed_at IS NOT NULL)
    $$;

DROP FUNCTION find_sessions(uuid[]);
CREATE FUNCTION find_sessions(session_ids uuid[])
    RETURNS TABLE (id uuid, user_id uuid, workspace_id uuid, email text, full_name text, role text,
                   expires_at timestamptz, ended_at timestamptz, rate_limit_per_minute integer,
                   lacks_second_factor boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT s.id, s.user_id, s.workspace_id, u.email, u.full_name, m.role, s.expires_at,
               s.ended_at, w.rate_limit_per_minute,
               lacks_second_factor(w.require_second_factor AND NOT s.by_passkey, u.id)
        FROM sessions s
        JOIN users u ON u.id = s.user_id
        JOIN workspaces w ON w.id = s.workspace_id
        LEFT JOIN memberships m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
        WHERE s.id = ANY (session_ids)
    $$;
REVOKE ALL ON FUNCTION find_sessions, lacks_second_factor FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_sessions TO call2me_auth_app;

-- Nodes are told, as of all that they believe of sessions.
DROP TRIGGER workspaces_announce ON workspaces;
CREATE CONSTRAINT TRIGGER workspaces_announce AFTER UPDATE ON workspaces
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((OLD.rate_limit_per_minute, OLD.require_second_factor)
          IS DISTINCT FROM (NEW.rate_limit_per_minute, NEW.require_second_factor))
    EXECUTE FUNCTION announce();

CREATE FUNCTION announce_factor() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM invalidate(NULL, NULL, OLD.user_id, NULL);
        RETURN NULL;
    END
    $$;
REVOKE ALL ON FUNCTION announce_factor FROM PUBLIC;
CREATE CONSTRAINT TRIGGER totp_factors_announce AFTER UPDATE ON totp_factors
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.confirmed_at IS DISTINCT FROM NEW.confirmed_at)
    EXECUTE FUNCTION announce_factor();
CREATE CONSTRAINT TRIGGER totp_factors_announce_delete AFTER DELETE ON totp_factors
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.confirmed_at IS NOT NULL)
    EXECUTE FUNCTION announce_factor();
