-- OAuth 2.1: clients, their grants in workspaces, and device authorizations.
--
-- A grant is one authorization of a client. Its row is created when a user consents, or when a client
-- requests tokens for itself. Authorization codes and refresh tokens are derived from the grant and
-- not stored, so ending the grant ends all its tokens.

CREATE TABLE oauth_clients (
    id uuid PRIMARY KEY,
    -- `registered`: registered itself (RFC 7591). `document`: described by a client ID metadata
    -- document, whose URL is its client_id. `workspace`: registered by an administrator.
    kind text NOT NULL CHECK (kind IN ('registered', 'document', 'workspace')),
    workspace_id uuid REFERENCES workspaces ON DELETE CASCADE,
    document_url text,
    name text NOT NULL,
    redirect_uris text[] NOT NULL,
    auth_method text NOT NULL CHECK (auth_method IN ('none', 'client_secret_basic', 'client_secret_post')),
    grant_types text[] NOT NULL,
    -- The maximum scope of its grants, and the default of its requests. NULL: not registered.
    scope text CHECK (scope IN ('read-only', 'write', 'admin')),
    client_uri text,
    -- The protected resource (RFC 8707) that the client is. It may introspect tokens for this
    -- resource. Only the operator sets it.
    resource text,
    created_at timestamptz NOT NULL,
    -- The creator's public id. NULL: the client registered itself, or the operator created it.
    created_by text,
    -- The subnet from which the client registered itself.
    subnet inet,
    CHECK ((kind = 'workspace') = (workspace_id IS NOT NULL)),
    CHECK ((kind = 'document') = (document_url IS NOT NULL)),
    CONSTRAINT oauth_clients_document_url_key UNIQUE (document_url)
);
CREATE INDEX oauth_clients_workspace_idx ON oauth_clients (workspace_id, id) WHERE workspace_id IS NOT NULL;
CREATE INDEX oauth_clients_registered_idx ON oauth_clients (created_at) WHERE kind <> 'workspace';
CREATE INDEX oauth_clients_subnet_idx ON oauth_clients (subnet, created_at) WHERE subnet IS NOT NULL;

CREATE TABLE oauth_client_secrets (
    id uuid PRIMARY KEY,
    client_id uuid NOT NULL REFERENCES oauth_clients ON DELETE CASCADE,
    -- SHA-256 of the whole secret. A secret has 256 random bits, so it needs no slow hash.
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    created_at timestamptz NOT NULL,
    -- The end of its overlap with its successor. NULL: the current secret.
    expires_at timestamptz
);
CREATE INDEX oauth_client_secrets_client_idx ON oauth_client_secrets (client_id, id);

CREATE TABLE oauth_grants (
    id uuid PRIMARY KEY,
    client_id uuid NOT NULL REFERENCES oauth_clients ON DELETE CASCADE,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    -- The user that consented. NULL: the client acts for itself (client credentials).
    user_id uuid REFERENCES users ON DELETE CASCADE,
    scope text NOT NULL CHECK (scope IN ('read-only', 'write', 'admin')),
    -- The audiences of its access tokens (RFC 8707). A token is for the first one by default.
    resources text[] NOT NULL CHECK (cardinality(resources) > 0),
    -- The passkey that the consenting session was verified with.
    passkey_id uuid REFERENCES passkeys ON DELETE SET NULL,
    created_at timestamptz NOT NULL,
    -- The redirect URI and the PKCE challenge (S256) of the authorization code.
    redirect_uri text,
    code_challenge bytea CHECK (octet_length(code_challenge) = 32),
    -- The expiry of the authorization code, and the time of the first tokens.
    begin_by timestamptz NOT NULL,
    begun_at timestamptz,
    last_used_at timestamptz,
    refresh_seed bytea NOT NULL CHECK (octet_length(refresh_seed) = 32),
    refresh_generation integer NOT NULL DEFAULT 0,
    -- The `jti` of access tokens that were revoked one by one and have not expired.
    revoked_tokens uuid[] NOT NULL DEFAULT '{}',
    ended_at timestamptz,
    end_reason text
);
CREATE INDEX oauth_grants_user_idx ON oauth_grants (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX oauth_grants_workspace_idx ON oauth_grants (workspace_id, id);
CREATE INDEX oauth_grants_client_idx ON oauth_grants (client_id, user_id, id);
CREATE INDEX oauth_grants_passkey_idx ON oauth_grants (passkey_id) WHERE passkey_id IS NOT NULL;
-- A client has at most one active grant of its own.
CREATE UNIQUE INDEX oauth_grants_own_key ON oauth_grants (client_id)
    WHERE user_id IS NULL AND ended_at IS NULL;
CREATE TRIGGER oauth_grants_stay_ended BEFORE UPDATE ON oauth_grants FOR EACH ROW
    WHEN (OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at)
    EXECUTE FUNCTION stay_ended('the ended grant');

-- Pending device authorizations (RFC 8628). They belong to no workspace yet, so the role has no
-- rights on the table and uses the functions below.
CREATE TABLE oauth_device_codes (
    id uuid PRIMARY KEY,
    client_id uuid NOT NULL REFERENCES oauth_clients ON DELETE CASCADE,
    -- A MAC of the code that the user enters, under a key that the database does not hold.
    user_code bytea NOT NULL CHECK (octet_length(user_code) = 32),
    scope text NOT NULL CHECK (scope IN ('read-only', 'write', 'admin')),
    resources text[] NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- The subnet of the request, for the limit on pending authorizations.
    subnet inet NOT NULL,
    -- The minimum time between two polls, in seconds. It grows when the client polls too often.
    poll_interval integer NOT NULL DEFAULT 5,
    polled_at timestamptz,
    denied_at timestamptz,
    grant_id uuid REFERENCES oauth_grants ON DELETE CASCADE,
    CONSTRAINT oauth_device_codes_user_code_key UNIQUE (user_code)
);
CREATE INDEX oauth_device_codes_expires_idx ON oauth_device_codes (expires_at);
CREATE INDEX oauth_device_codes_subnet_idx ON oauth_device_codes (subnet, expires_at);

------------------------------------------------------------------------------------------------
-- Rights of the role

GRANT SELECT, INSERT, UPDATE (name, redirect_uris), DELETE ON oauth_clients TO call2me_auth_app;
ALTER TABLE oauth_clients ENABLE ROW LEVEL SECURITY;
-- The clients of the workspace, and those with a grant that the transaction sees.
CREATE POLICY oauth_clients_visible ON oauth_clients FOR SELECT TO call2me_auth_app
    USING (workspace_id = current_workspace()
           OR EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = oauth_clients.id));
CREATE POLICY oauth_clients_make ON oauth_clients FOR INSERT TO call2me_auth_app
    WITH CHECK (workspace_id = current_workspace());
CREATE POLICY oauth_clients_change ON oauth_clients FOR UPDATE TO call2me_auth_app
    USING (workspace_id = current_workspace());
CREATE POLICY oauth_clients_remove ON oauth_clients FOR DELETE TO call2me_auth_app
    USING (workspace_id = current_workspace());

GRANT SELECT (id, client_id, created_at, expires_at), INSERT, UPDATE (expires_at), DELETE
    ON oauth_client_secrets TO call2me_auth_app;
ALTER TABLE oauth_client_secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY oauth_client_secrets_workspace ON oauth_client_secrets TO call2me_auth_app
    USING (EXISTS (SELECT FROM oauth_clients c
                   WHERE c.id = client_id AND c.workspace_id = current_workspace()))
    WITH CHECK (EXISTS (SELECT FROM oauth_clients c
                        WHERE c.id = client_id AND c.workspace_id = current_workspace()));

GRANT SELECT, INSERT,
    UPDATE (begun_at, last_used_at, refresh_generation, revoked_tokens, ended_at, end_reason)
    ON oauth_grants TO call2me_auth_app;
ALTER TABLE oauth_grants ENABLE ROW LEVEL SECURITY;
CREATE POLICY oauth_grants_visible ON oauth_grants FOR SELECT TO call2me_auth_app
    USING (workspace_id = current_workspace() OR user_id = current_person());
CREATE POLICY oauth_grants_make ON oauth_grants FOR INSERT TO call2me_auth_app
    WITH CHECK (workspace_id = current_workspace() AND (user_id IS NULL OR user_id = current_person()));
CREATE POLICY oauth_grants_change ON oauth_grants FOR UPDATE TO call2me_auth_app
    USING (workspace_id = current_workspace() OR user_id = current_person());

------------------------------------------------------------------------------------------------
-- Lookups before the caller is authenticated

-- Returns a client by its id or by the URL of its metadata document, with the digests of its valid
-- secrets.
CREATE FUNCTION find_oauth_client(client uuid, url text, moment timestamptz)
    RETURNS TABLE (id uuid, kind text, workspace_id uuid, document_url text, name text,
                   redirect_uris text[], auth_method text, grant_types text[], scope text,
                   client_uri text, resource text, created_at timestamptz, created_by text, secrets bytea[])
    LANGUAGE plpgsql STABLE ROWS 1 SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        RETURN QUERY
            SELECT c.id, c.kind, c.workspace_id, c.document_url, c.name, c.redirect_uris, c.auth_method,
                   c.grant_types, c.scope, c.client_uri, c.resource, c.created_at, c.created_by,
                   ARRAY(SELECT s.digest FROM oauth_client_secrets s
                         WHERE s.client_id = c.id AND (s.expires_at IS NULL OR s.expires_at > moment))
            FROM oauth_clients c
            WHERE CASE WHEN url IS NULL THEN c.id = client AND c.kind <> 'document'
                       ELSE c.document_url = url END;
    END
    $$;

-- Returns grants by their ids, to verify their tokens. `role` is NULL if the user is no longer a
-- member of the workspace.
CREATE FUNCTION find_oauth_grants(grant_ids uuid[])
    RETURNS TABLE (id uuid, client_id uuid, client_name text, workspace_id uuid, user_id uuid,
                   email text, full_name text, role text, scope text, ended_at timestamptz,
                   revoked_tokens uuid[], rate_limit_per_minute integer, lacks_second_factor boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT g.id, g.client_id, c.name, g.workspace_id, g.user_id, u.email, u.full_name, m.role,
               g.scope, g.ended_at, g.revoked_tokens, w.rate_limit_per_minute,
               lacks_second_factor(w.require_second_factor AND g.user_id IS NOT NULL
                                   AND g.passkey_id IS NULL, g.user_id)
        FROM oauth_grants g
        JOIN oauth_clients c ON c.id = g.client_id
        JOIN workspaces w ON w.id = g.workspace_id
        LEFT JOIN users u ON u.id = g.user_id
        LEFT JOIN memberships m ON m.workspace_id = g.workspace_id AND m.user_id = g.user_id
        WHERE g.id = ANY (grant_ids)
    $$;

------------------------------------------------------------------------------------------------
-- Clients without a workspace

-- Stores a client that registers itself. Returns false if too many clients from its subnet have no
-- grant. At the overall limit, the oldest clients without a grant are deleted to make room, so that
-- no subnet can keep others from registering.
CREATE FUNCTION register_oauth_client(
    client uuid, client_name text, uris text[], method text, grants text[], max_scope text, uri text,
    moment timestamptz, secret uuid, secret_digest bytea, registered_from inet,
    at_most integer, at_most_from_there integer
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        unused bigint;
    BEGIN
        IF at_most_from_there <= (
            SELECT count(*) FROM (
                SELECT FROM oauth_clients c
                WHERE c.subnet = registered_from AND c.created_at > moment - interval '7 days'
                  AND NOT EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = c.id)
                LIMIT at_most_from_there) from_there
        ) THEN
            RETURN false;
        END IF;
        SELECT count(*) INTO unused FROM (
            SELECT FROM oauth_clients c
            WHERE c.kind = 'registered' AND c.created_at > moment - interval '7 days'
              AND NOT EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = c.id)
            LIMIT at_most) over_all;
        IF unused >= at_most THEN
            DELETE FROM oauth_clients WHERE id IN (
                SELECT c.id FROM oauth_clients c
                WHERE c.kind = 'registered' AND c.created_at < moment - interval '1 hour'
                  AND NOT EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = c.id)
                ORDER BY c.created_at LIMIT 100
                FOR UPDATE SKIP LOCKED);
            IF NOT FOUND THEN
                RETURN false;
            END IF;
        END IF;
        INSERT INTO oauth_clients (id, kind, name, redirect_uris, auth_method, grant_types, scope,
                                   client_uri, created_at, subnet)
        VALUES (client, 'registered', client_name, uris, method, grants, max_scope, uri, moment,
                registered_from);
        IF secret IS NOT NULL THEN
            INSERT INTO oauth_client_secrets (id, client_id, digest, created_at)
            VALUES (secret, client, secret_digest, moment);
        END IF;
        RETURN true;
    END
    $$;

-- Stores the current metadata document of a client that a user authorizes. Returns the client's id,
-- which never changes.
CREATE FUNCTION store_oauth_document(
    client uuid, url text, client_name text, uris text[], grants text[], max_scope text, uri text,
    moment timestamptz
) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        stored uuid;
    BEGIN
        INSERT INTO oauth_clients AS c (id, kind, document_url, name, redirect_uris, auth_method,
                                        grant_types, scope, client_uri, created_at)
        VALUES (client, 'document', url, client_name, uris, 'none', grants, max_scope, uri, moment)
        ON CONFLICT (document_url) DO UPDATE
            SET name = excluded.name, redirect_uris = excluded.redirect_uris,
                grant_types = excluded.grant_types, scope = excluded.scope,
                client_uri = excluded.client_uri
        RETURNING c.id INTO stored;
        RETURN stored;
    END
    $$;

------------------------------------------------------------------------------------------------
-- Device authorizations

-- Stores a device authorization. Returns false if its user code exists, NULL if too many
-- authorizations are pending.
CREATE FUNCTION start_device_code(
    device uuid, client uuid, code bytea, wanted text, audiences text[], moment timestamptz,
    expires timestamptz, asked_from inet, at_most integer, at_most_from_there integer
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        IF at_most <= (SELECT count(*) FROM (SELECT FROM oauth_device_codes
                                             WHERE expires_at > moment LIMIT at_most) under_way)
           OR at_most_from_there <= (SELECT count(*) FROM oauth_device_codes
                                     WHERE subnet = asked_from AND expires_at > moment) THEN
            RETURN NULL;
        END IF;
        INSERT INTO oauth_device_codes (id, client_id, user_code, scope, resources, created_at, expires_at, subnet)
        VALUES (device, client, code, wanted, audiences, moment, expires, asked_from)
        ON CONFLICT (user_code) DO NOTHING;
        RETURN FOUND;
    END
    $$;

-- Returns the pending authorization with a user code.
CREATE FUNCTION find_device_code(code bytea, moment timestamptz)
    RETURNS TABLE (id uuid, client_id uuid, scope text, resources text[])
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT d.id, d.client_id, d.scope, d.resources FROM oauth_device_codes d
        WHERE d.user_code = code AND d.expires_at > moment AND d.denied_at IS NULL AND d.grant_id IS NULL
    $$;

-- Records the user's decision: a grant, or NULL to deny. Returns false if the authorization is
-- decided or has expired.
CREATE FUNCTION answer_device_code(device uuid, answer uuid, moment timestamptz) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        UPDATE oauth_device_codes
        SET grant_id = answer, denied_at = CASE WHEN answer IS NULL THEN moment END
        WHERE id = device AND expires_at > moment AND denied_at IS NULL AND grant_id IS NULL;
        RETURN FOUND;
    END
    $$;

-- Returns the state of an authorization for the polling client: unknown, expired, denied, approved,
-- pending or slow_down.
CREATE FUNCTION poll_device_code(device uuid, client uuid, moment timestamptz)
    RETURNS TABLE (state text, answer uuid)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        code oauth_device_codes;
    BEGIN
        SELECT * INTO code FROM oauth_device_codes d
        WHERE d.id = device AND d.client_id = client FOR UPDATE;
        IF NOT FOUND THEN
            RETURN QUERY SELECT 'unknown', NULL::uuid;
        ELSIF code.denied_at IS NOT NULL THEN
            RETURN QUERY SELECT 'denied', NULL::uuid;
        ELSIF code.grant_id IS NOT NULL THEN
            RETURN QUERY SELECT 'approved', code.grant_id;
        ELSIF code.expires_at <= moment THEN
            RETURN QUERY SELECT 'expired', NULL::uuid;
        ELSIF code.polled_at + make_interval(secs => code.poll_interval) > moment THEN
            UPDATE oauth_device_codes
            SET polled_at = moment, poll_interval = least(poll_interval + 5, 60) WHERE id = device;
            RETURN QUERY SELECT 'slow_down', NULL::uuid;
        ELSE
            UPDATE oauth_device_codes SET polled_at = moment WHERE id = device;
            RETURN QUERY SELECT 'pending', NULL::uuid;
        END IF;
    END
    $$;

------------------------------------------------------------------------------------------------
-- Maintenance

-- Counts the active grants of a client of the transaction's workspace, by the workspace that they are
-- for. Without a client, counts those of all its clients, in other workspaces only. The deletion of
-- the client is recorded in the audit logs of these workspaces.
CREATE FUNCTION oauth_clients_abroad(client uuid)
    RETURNS TABLE (client_id uuid, client_name text, workspace_id uuid, grants bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT c.id, c.name, g.workspace_id, count(*)
        FROM oauth_clients c JOIN oauth_grants g ON g.client_id = c.id
        WHERE c.workspace_id = current_workspace() AND (client IS NULL OR c.id = client)
          AND g.ended_at IS NULL AND g.begun_at IS NOT NULL
          AND (client IS NOT NULL OR g.workspace_id <> c.workspace_id)
        GROUP BY c.id, c.name, g.workspace_id ORDER BY g.workspace_id, c.id
    $$;

-- Ends idle grants. Deletes codes that were never redeemed, grants that ended long ago, clients
-- without a grant, and expired secrets.
CREATE FUNCTION prune_oauth(moment timestamptz, idle interval) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM oauth_device_codes WHERE expires_at < moment - interval '1 day';
        DELETE FROM oauth_grants WHERE begun_at IS NULL AND begin_by < moment - interval '1 day';
        UPDATE oauth_grants SET ended_at = moment, end_reason = 'idle'
        WHERE ended_at IS NULL AND last_used_at < moment - idle - interval '1 day';
        DELETE FROM oauth_grants WHERE ended_at < moment - interval '90 days';
        DELETE FROM oauth_client_secrets WHERE expires_at < moment - interval '1 day';
        DELETE FROM oauth_clients c
        WHERE kind <> 'workspace' AND created_at < moment - interval '7 days'
          AND NOT EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = c.id);
    $$;

REVOKE ALL ON FUNCTION find_oauth_client, find_oauth_grants, register_oauth_client,
    store_oauth_document, start_device_code, find_device_code, answer_device_code, poll_device_code,
    oauth_clients_abroad, prune_oauth FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_oauth_client, find_oauth_grants, register_oauth_client,
    store_oauth_document, start_device_code, find_device_code, answer_device_code, poll_device_code,
    oauth_clients_abroad, prune_oauth TO call2me_auth_app;
