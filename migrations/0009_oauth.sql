-- OAuth 2.1: clients, their grants in workspaces, and device authorizations.
--
-- A grant is one authorization of a client. Its row is created when a user consents, or when a
-- client requests tokens for itself. Authorization codes and refresh tokens are derived from the
-- grant and not stored, so ending the grant ends all its tokens.

CREATE TABLE oauth_clients (
    id uuid PRIMARY KEY,
    -- `registered`: registered itself (RFC 7591). `document`: described by a client ID metadata
    -- document, whose URL is its client_id. `workspace`: registered by an administrator.
    kind text NOT NULL CHECK (kind IN ('registered', 'document', 'workspace')),
    workspace_id uuid REFERENCES workspaces ON DELETE CASCADE,
    document_url text,
    name text NOT NULL,
    redirect_uris text[] NOT NULL,
    auth_method text NOT NULL
        CHECK (auth_method IN ('none', 'client_secret_basic', 'client_secret_post')),
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
    -- The user that created the client, directly or through an API key, and that API key. The
    -- latter has no foreign key: one of another workspace would keep that from being deleted.
    creator_user_id uuid REFERENCES users ON DELETE SET NULL,
    creator_key_id uuid,
    -- The subnet from which the client registered itself.
    subnet inet,
    CHECK ((kind = 'workspace') = (workspace_id IS NOT NULL)),
    CHECK ((kind = 'document') = (document_url IS NOT NULL)),
    CONSTRAINT oauth_clients_document_url_key UNIQUE (document_url)
);
CREATE INDEX oauth_clients_workspace_idx ON oauth_clients (workspace_id, id)
    WHERE workspace_id IS NOT NULL;
CREATE INDEX oauth_clients_creator_user_id_idx ON oauth_clients (creator_user_id)
    WHERE creator_user_id IS NOT NULL;
CREATE INDEX oauth_clients_creator_key_id_idx ON oauth_clients (creator_key_id)
    WHERE creator_key_id IS NOT NULL;
CREATE INDEX oauth_clients_registered_idx ON oauth_clients (created_at) WHERE kind <> 'workspace';
CREATE INDEX oauth_clients_subnet_idx ON oauth_clients (subnet, created_at)
    WHERE subnet IS NOT NULL;

CREATE TABLE oauth_client_secrets (
    id uuid PRIMARY KEY,
    client_id uuid NOT NULL REFERENCES oauth_clients ON DELETE CASCADE,
    -- SHA-256 of the whole secret. A secret has 256 random bits, so it needs no slow hash.
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    created_at timestamptz NOT NULL,
    -- The end of its overlap with its successor. NULL: the current secret.
    expires_at timestamptz,
    -- The creator's public id. NULL: the client registered itself, or the operator created it.
    created_by text,
    -- The user that added the secret, directly or through an API key, and that API key.
    creator_user_id uuid REFERENCES users ON DELETE SET NULL,
    creator_key_id uuid
);
CREATE INDEX oauth_client_secrets_client_idx ON oauth_client_secrets (client_id, id);
CREATE INDEX oauth_client_secrets_creator_user_id_idx ON oauth_client_secrets (creator_user_id)
    WHERE creator_user_id IS NOT NULL;
CREATE INDEX oauth_client_secrets_creator_key_id_idx ON oauth_client_secrets (creator_key_id)
    WHERE creator_key_id IS NOT NULL;

-- The redirect URIs that were added to a workspace client after its creation, with the credentials
-- that added them. A row stays when the URI is removed, as long as the client has a grant from the
-- time in between: the party that added the URI may have got it.
CREATE TABLE oauth_added_redirect_uris (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    client_id uuid NOT NULL REFERENCES oauth_clients ON DELETE CASCADE,
    uri text NOT NULL,
    -- The first addition by these credentials.
    added_at timestamptz NOT NULL,
    -- The last removal. NULL: the client has the URI.
    removed_at timestamptz,
    -- The public id of the principal.
    added_by text NOT NULL,
    creator_user_id uuid REFERENCES users ON DELETE SET NULL,
    creator_key_id uuid
);
CREATE INDEX oauth_added_redirect_uris_client_idx ON oauth_added_redirect_uris (client_id);
CREATE INDEX oauth_added_redirect_uris_removed_at_idx ON oauth_added_redirect_uris (removed_at)
    WHERE removed_at IS NOT NULL;
CREATE INDEX oauth_added_redirect_uris_creator_user_id_idx
    ON oauth_added_redirect_uris (creator_user_id) WHERE creator_user_id IS NOT NULL;
CREATE INDEX oauth_added_redirect_uris_creator_key_id_idx
    ON oauth_added_redirect_uris (creator_key_id) WHERE creator_key_id IS NOT NULL;

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
    redeem_by timestamptz NOT NULL,
    redeemed_at timestamptz,
    last_used_at timestamptz,
    -- The MAC key of the refresh tokens, encrypted.
    refresh_seed bytea NOT NULL CHECK (octet_length(refresh_seed) = 68),
    refresh_generation integer NOT NULL DEFAULT 0,
    -- The `jti` of access tokens that were revoked one by one and have not expired.
    revoked_tokens uuid[] NOT NULL DEFAULT '{}',
    ended_at timestamptz,
    end_reason text
);
CREATE INDEX oauth_grants_user_idx ON oauth_grants (user_id, id) WHERE user_id IS NOT NULL;
-- To end them: a user may have many that have ended.
CREATE INDEX oauth_grants_active_idx ON oauth_grants (user_id, id)
    WHERE user_id IS NOT NULL AND ended_at IS NULL;
CREATE INDEX oauth_grants_workspace_idx ON oauth_grants (workspace_id, id);
CREATE INDEX oauth_grants_client_idx ON oauth_grants (client_id, user_id, id);
CREATE INDEX oauth_grants_passkey_idx ON oauth_grants (passkey_id) WHERE passkey_id IS NOT NULL;
-- A client has at most one active grant of its own.
CREATE UNIQUE INDEX oauth_grants_client_credentials_key ON oauth_grants (client_id)
    WHERE user_id IS NULL AND ended_at IS NULL;
CREATE TRIGGER oauth_grants_reject_reactivation BEFORE UPDATE ON oauth_grants FOR EACH ROW
    WHEN (OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at)
    EXECUTE FUNCTION reject_reactivation('ended grant');

-- Pending device authorizations (RFC 8628). They belong to no workspace yet, so the role has no
-- rights on the table and uses the functions below.
CREATE TABLE oauth_device_authorizations (
    id uuid PRIMARY KEY,
    client_id uuid NOT NULL REFERENCES oauth_clients ON DELETE CASCADE,
    -- A MAC of the code that the user enters, under a key that the database does not hold.
    user_code_mac bytea NOT NULL CHECK (octet_length(user_code_mac) = 32),
    scope text NOT NULL CHECK (scope IN ('read-only', 'write', 'admin')),
    resources text[] NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- The subnet of the request, for the limit on pending authorizations.
    subnet inet NOT NULL,
    -- The minimum time between two polls, in seconds. It grows when the client polls too often.
    poll_interval integer NOT NULL,
    last_polled_at timestamptz,
    denied_at timestamptz,
    grant_id uuid REFERENCES oauth_grants ON DELETE CASCADE,
    CONSTRAINT oauth_device_authorizations_user_code_mac_key UNIQUE (user_code_mac)
);
CREATE INDEX oauth_device_authorizations_expires_idx ON oauth_device_authorizations (expires_at);
CREATE INDEX oauth_device_authorizations_subnet_idx
    ON oauth_device_authorizations (subnet, expires_at);

-- Long authorization requests of users that have to sign in first. They belong to no workspace yet,
-- so the role has no rights on the table and uses the functions below.
CREATE TABLE oauth_authorization_requests (
    id uuid PRIMARY KEY,
    -- The query of the request.
    query text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- The subnet of the browser, for the limit on kept requests.
    subnet inet NOT NULL
);
CREATE INDEX oauth_authorization_requests_expires_idx
    ON oauth_authorization_requests (expires_at);
CREATE INDEX oauth_authorization_requests_subnet_idx
    ON oauth_authorization_requests (subnet, created_at);

------------------------------------------------------------------------------------------------
-- Rights of the role

GRANT SELECT,
    INSERT (id, kind, workspace_id, name, redirect_uris, auth_method, grant_types, scope,
            client_uri, created_at, created_by, creator_user_id, creator_key_id),
    UPDATE (name, redirect_uris), DELETE
    ON oauth_clients TO call2me_auth_app;
ALTER TABLE oauth_clients ENABLE ROW LEVEL SECURITY;
-- The clients of the workspace, and those with a grant that the transaction sees.
CREATE POLICY oauth_clients_select ON oauth_clients FOR SELECT TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id())
           OR EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = oauth_clients.id));
CREATE POLICY oauth_clients_insert ON oauth_clients FOR INSERT TO call2me_auth_app
    WITH CHECK (workspace_id = (SELECT current_workspace_id()));
CREATE POLICY oauth_clients_update ON oauth_clients FOR UPDATE TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()));
CREATE POLICY oauth_clients_delete ON oauth_clients FOR DELETE TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()));

GRANT SELECT (id, client_id, created_at, expires_at, created_by, creator_user_id, creator_key_id),
    INSERT, UPDATE (expires_at), DELETE
    ON oauth_client_secrets TO call2me_auth_app;
ALTER TABLE oauth_client_secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY oauth_client_secrets_by_workspace ON oauth_client_secrets TO call2me_auth_app
    USING (EXISTS (SELECT FROM oauth_clients c
                   WHERE c.id = client_id AND c.workspace_id = (SELECT current_workspace_id())))
    WITH CHECK (EXISTS (SELECT FROM oauth_clients c
                        WHERE c.id = client_id AND c.workspace_id = (SELECT current_workspace_id())));

GRANT SELECT, INSERT, UPDATE (removed_at) ON oauth_added_redirect_uris TO call2me_auth_app;
ALTER TABLE oauth_added_redirect_uris ENABLE ROW LEVEL SECURITY;
CREATE POLICY oauth_added_redirect_uris_by_workspace ON oauth_added_redirect_uris
    TO call2me_auth_app
    USING (EXISTS (SELECT FROM oauth_clients c
                   WHERE c.id = client_id AND c.workspace_id = (SELECT current_workspace_id())))
    WITH CHECK (EXISTS (SELECT FROM oauth_clients c
                        WHERE c.id = client_id AND c.workspace_id = (SELECT current_workspace_id())));

-- The role inserts grants of users. A client's own grant is inserted by get_or_create_own_grant().
GRANT SELECT, INSERT,
    UPDATE (redeemed_at, last_used_at, refresh_generation, revoked_tokens, ended_at, end_reason)
    ON oauth_grants TO call2me_auth_app;
ALTER TABLE oauth_grants ENABLE ROW LEVEL SECURITY;
CREATE POLICY oauth_grants_select ON oauth_grants FOR SELECT TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()) OR user_id = (SELECT current_user_id()));
CREATE POLICY oauth_grants_insert ON oauth_grants FOR INSERT TO call2me_auth_app
    WITH CHECK (workspace_id = (SELECT current_workspace_id())
                AND user_id = (SELECT current_user_id()));
CREATE POLICY oauth_grants_update ON oauth_grants FOR UPDATE TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()) OR user_id = (SELECT current_user_id()));

------------------------------------------------------------------------------------------------
-- Lookups before the caller is authenticated

-- Returns a client by its id or by the URL of its metadata document, with the digests of its valid
-- secrets.
CREATE FUNCTION find_oauth_client(p_id uuid, p_document_url text, p_now timestamptz)
    RETURNS TABLE (id uuid, kind text, workspace_id uuid, document_url text, name text,
                   redirect_uris text[], auth_method text, grant_types text[], scope text,
                   client_uri text, resource text, created_at timestamptz, created_by text,
                   secrets bytea[])
    LANGUAGE plpgsql STABLE ROWS 1 SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        RETURN QUERY
            SELECT c.id, c.kind, c.workspace_id, c.document_url, c.name, c.redirect_uris,
                   c.auth_method, c.grant_types, c.scope, c.client_uri, c.resource, c.created_at,
                   c.created_by,
                   ARRAY(SELECT s.digest FROM oauth_client_secrets s
                         WHERE s.client_id = c.id
                           AND (s.expires_at IS NULL OR s.expires_at > p_now))
            FROM oauth_clients c
            WHERE CASE WHEN p_document_url IS NULL THEN c.id = p_id AND c.kind <> 'document'
                       ELSE c.document_url = p_document_url END;
    END
    $$;

-- Makes a client the protected resource with this identifier, by a decision of the operator: such a
-- client introspects tokens of all workspaces. The MAC covers client and resource, under a key of
-- contexts. Its message has another length than that of a context, so neither is valid for the
-- other.
CREATE FUNCTION set_oauth_client_resource(p_id uuid, p_resource text, p_key_id bytea, p_mac bytea)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM require_signed_decision('oauth_client_resource',
                                        uuid_send(p_id) || convert_to(p_resource, 'UTF8'),
                                        p_key_id, p_mac);
        UPDATE oauth_clients SET resource = p_resource WHERE id = p_id;
    END
    $$;

-- Returns grants by their ids, to verify their tokens. `role` is NULL if the user is no longer a
-- member of the workspace.
CREATE FUNCTION find_oauth_grants(p_ids uuid[])
    RETURNS TABLE (id uuid, client_id uuid, client_name text, workspace_id uuid, user_id uuid,
                   email text, full_name text, role text, scope text, ended_at timestamptz,
                   revoked_tokens uuid[], rate_limit_per_minute integer,
                   lacks_second_factor boolean)
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
        WHERE g.id = ANY (p_ids)
    $$;

------------------------------------------------------------------------------------------------
-- Clients that act for themselves

-- Returns the active grant of a client of the transaction's workspace to itself, and creates it if
-- there is none. A client has one, so a grant to a client of another workspace would keep that
-- client from its own.
CREATE FUNCTION get_or_create_own_grant(
    p_id uuid, p_client_id uuid, p_workspace_id uuid, p_scope text, p_resources text[],
    p_now timestamptz, p_refresh_seed bytea
) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        grant_id uuid;
    BEGIN
        IF p_workspace_id IS DISTINCT FROM current_workspace_id() OR NOT EXISTS (
            SELECT FROM oauth_clients c
            WHERE c.id = p_client_id AND c.workspace_id = p_workspace_id)
        THEN
            RAISE EXCEPTION 'a client acts for itself in the workspace of the transaction only'
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        INSERT INTO oauth_grants (id, client_id, workspace_id, scope, resources, created_at,
                                  redeem_by, refresh_seed)
        VALUES (p_id, p_client_id, p_workspace_id, p_scope, p_resources, p_now, p_now,
                p_refresh_seed)
        ON CONFLICT (client_id) WHERE user_id IS NULL AND ended_at IS NULL
            DO UPDATE SET last_used_at = p_now
        RETURNING id INTO grant_id;
        RETURN grant_id;
    END
    $$;

------------------------------------------------------------------------------------------------
-- Clients without a workspace

-- Stores a client that registers itself. Only clients without a grant that were created after
-- `p_counted_since` count. Over the limit of its subnet, the oldest of the subnet is deleted. At
-- the overall limit, the oldest that are older than an hour are deleted, so that no subnet can
-- keep others from registering; false if there are none. What is deleted is decided here, so
-- that injected SQL cannot delete the clients of others.
CREATE FUNCTION register_oauth_client(
    p_id uuid, p_name text, p_redirect_uris text[], p_auth_method text, p_grant_types text[],
    p_scope text, p_client_uri text, p_now timestamptz, p_secret_id uuid, p_secret_digest bytea,
    p_subnet inet, p_counted_since timestamptz
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        max_from_subnet CONSTANT integer := 200;
        max_total CONSTANT integer := 10000;
        protected_since CONSTANT timestamptz := pruning_time(p_now) - interval '1 hour';
        unused bigint;
    BEGIN
        DELETE FROM oauth_clients WHERE id IN (
            SELECT c.id FROM oauth_clients c
            WHERE c.subnet = p_subnet AND c.created_at > p_counted_since
              AND NOT EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = c.id)
            ORDER BY c.created_at DESC OFFSET max_from_subnet - 1
            FOR UPDATE SKIP LOCKED);
        SELECT count(*) INTO unused FROM (
            SELECT FROM oauth_clients c
            WHERE c.kind = 'registered' AND c.created_at > p_counted_since
              AND NOT EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = c.id)
            LIMIT max_total) overall;
        IF unused >= max_total THEN
            DELETE FROM oauth_clients WHERE id IN (
                SELECT c.id FROM oauth_clients c
                WHERE c.kind = 'registered' AND c.created_at < protected_since
                  AND NOT EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = c.id)
                ORDER BY c.created_at LIMIT 100
                FOR UPDATE SKIP LOCKED);
            IF NOT FOUND THEN
                RETURN false;
            END IF;
        END IF;
        INSERT INTO oauth_clients (id, kind, name, redirect_uris, auth_method, grant_types, scope,
                                   client_uri, created_at, subnet)
        VALUES (p_id, 'registered', p_name, p_redirect_uris, p_auth_method, p_grant_types, p_scope,
                p_client_uri, p_now, p_subnet);
        IF p_secret_id IS NOT NULL THEN
            INSERT INTO oauth_client_secrets (id, client_id, digest, created_at)
            VALUES (p_secret_id, p_id, p_secret_digest, p_now);
        END IF;
        RETURN true;
    END
    $$;

-- Stores the current metadata document of a client that a user authorizes. Returns the client's id,
-- which never changes.
CREATE FUNCTION store_oauth_metadata_document(
    p_id uuid, p_document_url text, p_name text, p_redirect_uris text[], p_grant_types text[],
    p_scope text, p_client_uri text, p_now timestamptz
) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        stored_id uuid;
    BEGIN
        INSERT INTO oauth_clients AS c (id, kind, document_url, name, redirect_uris, auth_method,
                                        grant_types, scope, client_uri, created_at)
        VALUES (p_id, 'document', p_document_url, p_name, p_redirect_uris, 'none', p_grant_types,
                p_scope, p_client_uri, p_now)
        ON CONFLICT (document_url) DO UPDATE
            SET name = excluded.name, redirect_uris = excluded.redirect_uris,
                grant_types = excluded.grant_types, scope = excluded.scope,
                client_uri = excluded.client_uri
        RETURNING c.id INTO stored_id;
        RETURN stored_id;
    END
    $$;

------------------------------------------------------------------------------------------------
-- Authorization requests

-- Keeps a request. Over the limit of its subnet, the oldest request of the subnet is deleted.
-- Returns false if too many are kept overall.
CREATE FUNCTION keep_oauth_authorization_request(
    p_id uuid, p_query text, p_now timestamptz, p_expires_at timestamptz, p_subnet inet
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        max_from_subnet CONSTANT integer := 100;
        max_total CONSTANT integer := 10000;
    BEGIN
        DELETE FROM oauth_authorization_requests WHERE id IN (
            SELECT r.id FROM oauth_authorization_requests r
            WHERE r.subnet = p_subnet
            ORDER BY r.created_at DESC OFFSET max_from_subnet - 1
            FOR UPDATE SKIP LOCKED);
        IF max_total <= (SELECT count(*) FROM (SELECT FROM oauth_authorization_requests
                                               WHERE expires_at > p_now LIMIT max_total) kept) THEN
            RETURN false;
        END IF;
        INSERT INTO oauth_authorization_requests (id, query, created_at, expires_at, subnet)
        VALUES (p_id, p_query, p_now, p_expires_at, p_subnet);
        RETURN true;
    END
    $$;

-- Returns the query of a kept request.
CREATE FUNCTION find_oauth_authorization_request(p_id uuid, p_now timestamptz) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT r.query FROM oauth_authorization_requests r
        WHERE r.id = p_id AND r.expires_at > p_now
    $$;

------------------------------------------------------------------------------------------------
-- Device authorizations

-- Stores a device authorization. Returns false if its user code exists, NULL if too many
-- authorizations are pending.
CREATE FUNCTION start_device_authorization(
    p_id uuid, p_client_id uuid, p_user_code_mac bytea, p_scope text, p_resources text[],
    p_now timestamptz, p_expires_at timestamptz, p_subnet inet, p_poll_interval integer,
    p_max_total integer, p_max_from_subnet integer
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        IF p_max_total <= (SELECT count(*) FROM (SELECT FROM oauth_device_authorizations
                                             WHERE expires_at > p_now LIMIT p_max_total) pending)
           OR p_max_from_subnet <= (SELECT count(*) FROM oauth_device_authorizations
                                     WHERE subnet = p_subnet AND expires_at > p_now) THEN
            RETURN NULL;
        END IF;
        INSERT INTO oauth_device_authorizations (id, client_id, user_code_mac, scope, resources,
                                                 created_at, expires_at, subnet, poll_interval)
        VALUES (p_id, p_client_id, p_user_code_mac, p_scope, p_resources, p_now, p_expires_at,
                p_subnet, p_poll_interval)
        ON CONFLICT (user_code_mac) DO NOTHING;
        RETURN FOUND;
    END
    $$;

-- Returns the pending authorization with a user code, of which there is a MAC for each key.
CREATE FUNCTION find_device_authorization(p_user_code_macs bytea[], p_now timestamptz)
    RETURNS TABLE (id uuid, client_id uuid, scope text, resources text[])
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT d.id, d.client_id, d.scope, d.resources FROM oauth_device_authorizations d
        WHERE d.user_code_mac = ANY (p_user_code_macs) AND d.expires_at > p_now
          AND d.denied_at IS NULL AND d.grant_id IS NULL
    $$;

-- Records the user's decision: a grant, or NULL to deny. Returns false if the authorization is
-- decided or has expired. The grant must be a new one of the transaction's user to the client that
-- waits, in the transaction's workspace, without an authorization code: the client gets its tokens.
CREATE FUNCTION decide_device_authorization(p_id uuid, p_grant_id uuid, p_now timestamptz)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        UPDATE oauth_device_authorizations
        SET grant_id = p_grant_id, denied_at = CASE WHEN p_grant_id IS NULL THEN p_now END
        WHERE id = p_id AND expires_at > p_now AND denied_at IS NULL AND grant_id IS NULL
          AND (p_grant_id IS NULL OR EXISTS (
              SELECT FROM oauth_grants g
              WHERE g.id = p_grant_id AND g.client_id = oauth_device_authorizations.client_id
                AND g.workspace_id = current_workspace_id() AND g.user_id = current_user_id()
                AND g.redirect_uri IS NULL AND g.code_challenge IS NULL
                AND g.redeemed_at IS NULL AND g.ended_at IS NULL));
        RETURN FOUND;
    END
    $$;

-- Returns an authorization to the client that polls it, and locks it until the transaction ends, so
-- that concurrent polls take turns.
CREATE FUNCTION lock_device_authorization(p_id uuid, p_client_id uuid)
    RETURNS TABLE (expires_at timestamptz, poll_interval integer, last_polled_at timestamptz,
                   denied_at timestamptz, grant_id uuid)
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT d.expires_at, d.poll_interval, d.last_polled_at, d.denied_at, d.grant_id
        FROM oauth_device_authorizations d WHERE d.id = p_id AND d.client_id = p_client_id
        FOR UPDATE
    $$;

-- Records a poll of an authorization that this transaction has locked.
CREATE FUNCTION record_device_poll(p_id uuid, p_now timestamptz, p_poll_interval integer)
    RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        UPDATE oauth_device_authorizations
        SET last_polled_at = p_now, poll_interval = p_poll_interval WHERE id = p_id
    $$;

------------------------------------------------------------------------------------------------
-- Maintenance

-- Counts the active grants of clients of the transaction's workspace, for each workspace that they
-- give access to. With a client: its grants in all workspaces. Without: the grants of all clients
-- in other workspaces. The deletion of a client is recorded in the audit logs of these workspaces.
CREATE FUNCTION list_external_oauth_grants(p_client_id uuid)
    RETURNS TABLE (client_id uuid, client_name text, workspace_id uuid, grants bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT c.id, c.name, g.workspace_id, count(*)
        FROM oauth_clients c JOIN oauth_grants g ON g.client_id = c.id
        WHERE c.workspace_id = current_workspace_id()
          AND (p_client_id IS NULL OR c.id = p_client_id)
          AND g.ended_at IS NULL AND g.redeemed_at IS NOT NULL
          AND (p_client_id IS NOT NULL OR g.workspace_id <> c.workspace_id)
        GROUP BY c.id, c.name, g.workspace_id ORDER BY g.workspace_id, c.id
    $$;

-- True if a grant may have been created between two times, of which the second one may be NULL. The
-- clocks of the nodes that recorded the times may differ.
CREATE FUNCTION is_created_between(
    p_created_at timestamptz, p_since timestamptz, p_until timestamptz
) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT p_created_at >= p_since - interval '1 minute'
           AND (p_until IS NULL OR p_created_at <= p_until + interval '1 minute')
    $$;

-- The longest time for which an access token is valid (`sessions.access_token_seconds`).
CREATE FUNCTION max_access_token_lifetime() RETURNS interval
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT interval '1 day' $$;

-- True if an active grant may give access that was obtained between two times, of which the second
-- one may be NULL. A client's own grant counts unless `p_now` is NULL. It has no tokens but access
-- tokens, so an earlier time is of no use.
CREATE FUNCTION has_access_from_between(
    p_grant oauth_grants, p_since timestamptz, p_until timestamptz, p_now timestamptz
) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
        SELECT p_grant.ended_at IS NULL
           AND CASE WHEN p_grant.user_id IS NOT NULL
                    THEN is_created_between(p_grant.created_at, p_since, p_until)
                    ELSE p_now IS NOT NULL
                         AND (p_until IS NULL OR p_until > p_now - max_access_token_lifetime())
               END
    $$;

-- Returns true if a client of the transaction's workspace has an active grant, in any workspace,
-- from between two times.
CREATE FUNCTION has_oauth_grant_between(
    p_client_id uuid, p_since timestamptz, p_until timestamptz, p_now timestamptz
) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT EXISTS (
            SELECT FROM oauth_grants g JOIN oauth_clients c ON c.id = g.client_id
            WHERE c.id = p_client_id AND c.workspace_id = current_workspace_id()
              AND has_access_from_between(g, p_since, p_until, p_now))
    $$;

-- Ends what a client of the transaction's workspace was granted between two times, in all
-- workspaces. Returns the number of grants for each workspace.
CREATE FUNCTION end_oauth_grants_between(
    p_client_id uuid, p_since timestamptz, p_until timestamptz, p_includes_own boolean,
    p_now timestamptz, p_reason text
)
    RETURNS TABLE (client_id uuid, client_name text, workspace_id uuid, grants bigint)
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        WITH ended AS (
            UPDATE oauth_grants g SET ended_at = p_now, end_reason = p_reason
            FROM oauth_clients c
            WHERE c.id = p_client_id AND c.workspace_id = current_workspace_id()
              AND g.client_id = c.id AND has_access_from_between(g, p_since, p_until, CASE WHEN p_includes_own THEN p_now END)
            RETURNING c.id, c.name, g.workspace_id AS workspace
        )
        SELECT e.id, e.name, e.workspace, count(*) FROM ended e
        GROUP BY e.id, e.name, e.workspace ORDER BY e.workspace
    $$;

-- The functions below change at most this many rows of a table, so that no transaction is long.
-- They return true if there may be more.
CREATE FUNCTION max_pruned_oauth_rows() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT 1000::bigint $$;

-- Deletes kept authorization requests that expired, and device authorizations, authorization
-- codes that were never redeemed, and client secrets that expired more than a day ago. A secret
-- that a key added stays as long as the client has a grant from its time: the cascade of the key
-- ends it.
CREATE FUNCTION prune_expired_oauth_codes(p_now timestamptz) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        WITH requests AS (
            DELETE FROM oauth_authorization_requests WHERE id IN (
                SELECT id FROM oauth_authorization_requests WHERE expires_at < pruning_time(p_now)
                LIMIT max_pruned_oauth_rows() FOR UPDATE SKIP LOCKED)
            RETURNING id
        ), devices AS (
            DELETE FROM oauth_device_authorizations WHERE id IN (
                SELECT id FROM oauth_device_authorizations
                WHERE expires_at < pruning_time(p_now) - interval '1 day'
                LIMIT max_pruned_oauth_rows() FOR UPDATE SKIP LOCKED)
            RETURNING id
        ), codes AS (
            DELETE FROM oauth_grants WHERE id IN (
                SELECT id FROM oauth_grants
                WHERE redeemed_at IS NULL AND redeem_by < pruning_time(p_now) - interval '1 day'
                LIMIT max_pruned_oauth_rows() FOR UPDATE SKIP LOCKED)
            RETURNING id
        ), secrets AS (
            DELETE FROM oauth_client_secrets s
            WHERE s.expires_at < pruning_time(p_now) - interval '1 day'
              AND (s.creator_key_id IS NULL OR NOT EXISTS (
                  SELECT FROM oauth_grants g
                  WHERE g.client_id = s.client_id
                    AND has_access_from_between(g, s.created_at, s.expires_at, p_now)))
        )
        SELECT max_pruned_oauth_rows()
               <= greatest((SELECT count(*) FROM requests), (SELECT count(*) FROM devices),
                           (SELECT count(*) FROM codes))
    $$;

-- Ends grants that were unused for a day more than the idle timeout, an authenticated setting.
-- Deletes those that ended more than 90 days ago.
CREATE FUNCTION prune_oauth_grants(
    p_now timestamptz, p_idle_seconds bigint, p_key_id bytea, p_mac bytea
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        ended bigint;
        deleted bigint;
    BEGIN
        PERFORM require_signed_decision('oauth.refresh_token_seconds', int8send(p_idle_seconds),
                                        p_key_id, p_mac);
        UPDATE oauth_grants SET ended_at = pruning_time(p_now), end_reason = 'idle'
        WHERE id IN (
            SELECT id FROM oauth_grants
            WHERE ended_at IS NULL
              AND last_used_at < pruning_time(p_now) - interval '1 day'
                                 - p_idle_seconds * interval '1 second'
            LIMIT max_pruned_oauth_rows() FOR UPDATE SKIP LOCKED);
        GET DIAGNOSTICS ended = ROW_COUNT;
        DELETE FROM oauth_grants WHERE id IN (
            SELECT id FROM oauth_grants WHERE ended_at < pruning_time(p_now) - interval '90 days'
            LIMIT max_pruned_oauth_rows() FOR UPDATE SKIP LOCKED);
        GET DIAGNOSTICS deleted = ROW_COUNT;
        -- Redirect URIs that were removed, of which no grant is left.
        DELETE FROM oauth_added_redirect_uris a
        WHERE a.removed_at < pruning_time(p_now) - interval '1 day'
          AND NOT EXISTS (
              SELECT FROM oauth_grants g
              WHERE g.client_id = a.client_id
                AND has_access_from_between(g, a.added_at, a.removed_at, NULL));
        RETURN greatest(ended, deleted) >= max_pruned_oauth_rows();
    END
    $$;

-- Deletes clients without a grant that belong to no workspace and are older than seven days.
CREATE FUNCTION prune_oauth_clients(p_now timestamptz) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        WITH clients AS (
            DELETE FROM oauth_clients WHERE id IN (
                SELECT id FROM oauth_clients c
                WHERE kind <> 'workspace' AND created_at < pruning_time(p_now) - interval '7 days'
                  AND NOT EXISTS (SELECT FROM oauth_grants g WHERE g.client_id = c.id)
                LIMIT max_pruned_oauth_rows() FOR UPDATE SKIP LOCKED)
            RETURNING id
        )
        SELECT max_pruned_oauth_rows() <= (SELECT count(*) FROM clients)
    $$;

REVOKE ALL ON FUNCTION find_oauth_client, set_oauth_client_resource, find_oauth_grants,
    get_or_create_own_grant, register_oauth_client, store_oauth_metadata_document,
    keep_oauth_authorization_request, find_oauth_authorization_request,
    start_device_authorization, find_device_authorization, decide_device_authorization,
    lock_device_authorization, record_device_poll,
    list_external_oauth_grants, is_created_between, has_access_from_between,
    max_access_token_lifetime, has_oauth_grant_between,
    end_oauth_grants_between, max_pruned_oauth_rows, prune_expired_oauth_codes, prune_oauth_grants,
    prune_oauth_clients
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_oauth_client, set_oauth_client_resource, find_oauth_grants,
    get_or_create_own_grant, register_oauth_client, store_oauth_metadata_document,
    keep_oauth_authorization_request, find_oauth_authorization_request,
    start_device_authorization, find_device_authorization, decide_device_authorization,
    lock_device_authorization, record_device_poll,
    list_external_oauth_grants, has_oauth_grant_between, end_oauth_grants_between,
    prune_expired_oauth_codes, prune_oauth_grants, prune_oauth_clients
    TO call2me_auth_app;
