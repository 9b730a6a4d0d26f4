-- The tables that people, workspaces, keys and their log live in.
--
-- Tenancy is held twice: every query of the service names its workspace, and behind that, row-level
-- security lets the role `call2me_auth_app` see one workspace and one person at a time, those of the
-- settings `call2me.workspace_id` and `call2me.user_id`. The role owns nothing, so policies bind it.
-- What must be looked up before a caller is known goes through SECURITY DEFINER functions.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'call2me_auth_app') THEN
        CREATE ROLE call2me_auth_app NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
    END IF;
EXCEPTION
    -- Roles belong to the whole cluster: a migration of another database was faster.
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

-- A login with one URL for everything works as the role by SET ROLE, which wants membership.
DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'call2me_auth_app', 'MEMBER') THEN
        EXECUTE format('GRANT call2me_auth_app TO %I', current_user);
    END IF;
EXCEPTION
    -- Then the service must log in as the role itself, which it checks when it starts.
    WHEN insufficient_privilege THEN NULL;
END
$$;

GRANT USAGE ON SCHEMA public TO call2me_auth_app;
-- The functions below run as the owner and look names up here: nobody else may put any.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- After a SET LOCAL has ended, a custom setting is empty rather than NULL, hence NULLIF.
CREATE FUNCTION current_workspace() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT NULLIF(current_setting('call2me.workspace_id', true), '')::uuid $$;

CREATE FUNCTION current_person() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT NULLIF(current_setting('call2me.user_id', true), '')::uuid $$;

------------------------------------------------------------------------------------------------
-- People and workspaces

CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text NOT NULL,
    -- The address as it is compared: lower case.
    email_key text NOT NULL,
    full_name text,
    -- A PHC string (argon2id). The role may write it, never read it: see find_sign_in.
    password_hash text,
    -- Whatever else clients store with `PATCH /v1/users/me`. As `json`, which keeps what it is given:
    -- `jsonb` reorders fields, and writes great numbers so that others cannot read them.
    profile json NOT NULL DEFAULT '{}',
    last_workspace_id uuid,
    created_at timestamptz NOT NULL,
    CONSTRAINT users_email_key_key UNIQUE (email_key)
);

CREATE TABLE workspaces (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    branding json NOT NULL DEFAULT '{}',
    -- Requests a minute for each credential of the workspace; NULL is the configured default.
    rate_limit_per_minute integer CHECK (rate_limit_per_minute > 0),
    created_at timestamptz NOT NULL
);

CREATE TABLE memberships (
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member', 'viewer')),
    joined_at timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, user_id)
);
CREATE INDEX memberships_user_id_idx ON memberships (user_id);

CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    ip inet,
    user_agent text,
    -- Refresh tokens are derived, not stored: a MAC over session, seed and generation under a key
    -- that the database does not hold.
    refresh_seed bytea NOT NULL CHECK (octet_length(refresh_seed) = 32),
    refresh_generation integer NOT NULL DEFAULT 0,
    refreshed_at timestamptz NOT NULL,
    -- The absolute end, however often the session is refreshed.
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    end_reason text
);
CREATE INDEX sessions_user_id_idx ON sessions (user_id) WHERE ended_at IS NULL;

------------------------------------------------------------------------------------------------
-- API keys

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    name text NOT NULL,
    description text,
    scope text NOT NULL CHECK (scope IN ('read-only', 'write', 'admin')),
    -- SHA-256 of the whole key: 178 random bits need no slow hash.
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    -- The first and last four of the random part, for display.
    display_start text NOT NULL,
    display_end text NOT NULL,
    allowed_ips cidr[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    -- Who minted it, as a public id (`user_…`, `key_…`); NULL: the operator, from the command line.
    created_by text,
    -- The person behind it: whom `/v1/users/me` shows to the key.
    creator_user_id uuid REFERENCES users ON DELETE SET NULL,
    revoked_at timestamptz,
    revoked_by text,
    rotated_from uuid REFERENCES api_keys,
    CONSTRAINT api_keys_digest_key UNIQUE (digest)
);
CREATE INDEX api_keys_workspace_id_idx ON api_keys (workspace_id, id);
-- A key has at most one successor that lives.
CREATE UNIQUE INDEX api_keys_live_successor_key ON api_keys (rotated_from) WHERE revoked_at IS NULL;

-- Beside the keys, not in them: written by every batch of the log, so it must not contend with a
-- revocation for the key's row.
CREATE TABLE api_key_activity (
    key_id uuid PRIMARY KEY REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    first_used_at timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL,
    last_used_ip inet,
    total_requests bigint NOT NULL
) WITH (fillfactor = 70);

------------------------------------------------------------------------------------------------
-- The audit log

-- Ids are UUIDv7, so their order is the order of time; partitions are ranges of ids, one a month,
-- and a page of the newest events reads the newest partition alone.
CREATE TABLE audit_events (
    id uuid NOT NULL,
    workspace_id uuid NOT NULL,
    action text NOT NULL,
    actor_type text NOT NULL,
    actor_id uuid,
    actor_name text,
    target_type text,
    target_id uuid,
    target_name text,
    request_id uuid,
    method text,
    path text,
    status smallint,
    ip inet,
    user_agent text,
    latency_us bigint,
    metadata jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (workspace_id, id)
) PARTITION BY RANGE (id);
CREATE INDEX audit_events_actor_id_idx ON audit_events (actor_id, id);

-- The least UUIDv7 of a moment: events from then on have greater ids.
CREATE FUNCTION uuid_at(moment timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
        SELECT (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0')
                || repeat('0', 20))::uuid
    $$;

-- Makes the partition of the month that holds a moment. Built aside and attached, which locks the
-- parent against nobody: CREATE … PARTITION OF would stand in line behind a long export and make
-- every reader stand behind itself.
CREATE FUNCTION create_audit_partition(moment timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        first timestamptz := date_trunc('month', moment AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
        after timestamptz :=
            (date_trunc('month', moment AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC';
        partition text := 'audit_events_' || to_char(first AT TIME ZONE 'UTC', 'YYYY_MM');
    BEGIN
        IF abs(extract(epoch FROM moment - now())) > 20 * 366 * 86400 THEN
            RAISE EXCEPTION 'no partition is made for %', moment;
        END IF;
        IF to_regclass('public.' || partition) IS NOT NULL THEN
            RETURN;
        END IF;
        PERFORM pg_advisory_xact_lock(hashtext('create_audit_partition'));
        IF to_regclass('public.' || partition) IS NOT NULL THEN
            RETURN;
        END IF;
        EXECUTE format('CREATE TABLE %I (LIKE audit_events INCLUDING ALL)', partition);
        EXECUTE format('ALTER TABLE audit_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       partition, uuid_at(first), uuid_at(after));
    END
    $$;

SELECT create_audit_partition(now() + month * interval '1 month') FROM generate_series(-1, 2) AS month;

-- Writes a batch of events of any workspaces and counts what the keys among them did. An event that
-- is there already is passed over and counted no second time, so a batch may be retried.
CREATE FUNCTION append_audit_events(
    ids uuid[], workspace_ids uuid[], actions text[],
    actor_types text[], actor_ids uuid[], actor_names text[],
    target_types text[], target_ids uuid[], target_names text[],
    request_ids uuid[], methods text[], paths text[], statuses smallint[],
    ips inet[], user_agents text[], latencies bigint[], metadatas jsonb[]
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        WITH written AS (
            INSERT INTO audit_events (
                id, workspace_id, action, actor_type, actor_id, actor_name, target_type, target_id,
                target_name, request_id, method, path, status, ip, user_agent, latency_us, metadata)
            SELECT * FROM unnest(
                ids, workspace_ids, actions, actor_types, actor_ids, actor_names, target_types,
                target_ids, target_names, request_ids, methods, paths, statuses, ips, user_agents,
                latencies, metadatas)
            ON CONFLICT DO NOTHING
            RETURNING id, workspace_id, action, actor_type, actor_id, ip
        ), used AS (
            SELECT actor_id AS key_id, min(id::text)::uuid AS first_id, max(id::text)::uuid AS last_id,
                   count(*) AS requests
            FROM written
            WHERE actor_type = 'api_key' AND action = 'request'
            GROUP BY actor_id
        )
        INSERT INTO api_key_activity AS activity
            (key_id, workspace_id, first_used_at, last_used_at, last_used_ip, total_requests)
        SELECT used.key_id, written.workspace_id, uuid_moment(first_id), uuid_moment(last_id),
               written.ip, used.requests
        FROM used
        JOIN written ON written.id = used.last_id
        JOIN api_keys ON api_keys.id = used.key_id
        -- One order for all nodes, or two batches could wait for each other.
        ORDER BY used.key_id
        ON CONFLICT (key_id) DO UPDATE SET
            first_used_at = least(activity.first_used_at, excluded.first_used_at),
            last_used_ip = CASE WHEN excluded.last_used_at >= activity.last_used_at
                                THEN excluded.last_used_ip ELSE activity.last_used_ip END,
            last_used_at = greatest(activity.last_used_at, excluded.last_used_at),
            total_requests = activity.total_requests + excluded.total_requests;
    END
    $$;

-- The moment that a UUIDv7 was made at.
CREATE FUNCTION uuid_moment(id uuid) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
        SELECT to_timestamp(('x' || lpad(left(replace(id::text, '-', ''), 12), 16, '0'))::bit(64)::bigint
                            / 1000.0)
    $$;

-- Requests with a credential that nobody knows belong to no workspace: they are counted.
CREATE TABLE unknown_credential_counts (
    address inet NOT NULL,
    minute timestamptz NOT NULL,
    attempts bigint NOT NULL,
    PRIMARY KEY (minute, address)
);

------------------------------------------------------------------------------------------------
-- Resources: stored documents of the platform's other services

CREATE TABLE documents (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('agent', 'call', 'knowledge_base', 'campaign')),
    -- The agent of a call or campaign. It may be deleted; the call was made all the same.
    agent_id uuid,
    body json NOT NULL,
    -- Of the body as text: a page is cut where its documents would be too large together.
    body_bytes integer NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX documents_workspace_id_idx ON documents (workspace_id, kind, id);
CREATE INDEX documents_agent_id_idx ON documents (agent_id, id) WHERE agent_id IS NOT NULL;

CREATE TABLE wallet_transactions (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('top_up', 'charge', 'refund')),
    -- US cents; a charge is negative.
    amount_cents bigint NOT NULL,
    description text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX wallet_transactions_workspace_id_idx ON wallet_transactions (workspace_id, id);

------------------------------------------------------------------------------------------------
-- Signing keys

CREATE TABLE signing_keys (
    -- The `kid`.
    id uuid PRIMARY KEY,
    -- Ed25519, 32 bytes.
    public_key bytea NOT NULL CHECK (octet_length(public_key) = 32),
    -- The seed, sealed under a key derived from `keys.encryption_key`.
    sealed_private_key bytea NOT NULL,
    created_at timestamptz NOT NULL,
    retired_at timestamptz
);

------------------------------------------------------------------------------------------------
-- Look-ups before a caller is known

CREATE FUNCTION find_api_key(key_digest bytea)
    RETURNS TABLE (id uuid, workspace_id uuid, name text, scope text, allowed_ips cidr[],
                   creator_user_id uuid, revoked_at timestamptz, rate_limit_per_minute integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT k.id, k.workspace_id, k.name, k.scope, k.allowed_ips, k.creator_user_id, k.revoked_at,
               w.rate_limit_per_minute
        FROM api_keys k JOIN workspaces w ON w.id = k.workspace_id
        WHERE k.digest = key_digest
    $$;

CREATE FUNCTION find_session(session_id uuid)
    RETURNS TABLE (user_id uuid, workspace_id uuid, email text, full_name text, role text,
                   expires_at timestamptz, ended_at timestamptz, rate_limit_per_minute integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT s.user_id, s.workspace_id, u.email, u.full_name, m.role, s.expires_at, s.ended_at,
               w.rate_limit_per_minute
        FROM sessions s
        JOIN users u ON u.id = s.user_id
        JOIN workspaces w ON w.id = s.workspace_id
        LEFT JOIN memberships m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
        WHERE s.id = session_id
    $$;

CREATE FUNCTION find_sign_in(address text)
    RETURNS TABLE (user_id uuid, email text, full_name text, password_hash text, last_workspace_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT u.id, u.email, u.full_name, u.password_hash, u.last_workspace_id
        FROM users u WHERE u.email_key = address
    $$;

------------------------------------------------------------------------------------------------
-- What has ended stays so

CREATE FUNCTION stay_ended() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
    BEGIN
        RAISE EXCEPTION '% of % does not come back', TG_ARGV[0], OLD.id
            USING ERRCODE = 'insufficient_privilege';
    END
    $$;

CREATE TRIGGER api_keys_stay_revoked BEFORE UPDATE ON api_keys FOR EACH ROW
    WHEN (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at)
    EXECUTE FUNCTION stay_ended('the revoked key');
CREATE TRIGGER sessions_stay_ended BEFORE UPDATE ON sessions FOR EACH ROW
    WHEN (OLD.ended_at IS NOT NULL AND NEW.ended_at IS DISTINCT FROM OLD.ended_at)
    EXECUTE FUNCTION stay_ended('the ended session');

-- Counts of unknown credentials are worth a month.
CREATE FUNCTION prune_unknown_credential_counts() RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM unknown_credential_counts WHERE minute < now() - interval '30 days' $$;

------------------------------------------------------------------------------------------------
-- What the role may do

REVOKE ALL ON FUNCTION create_audit_partition, append_audit_events, find_api_key, find_session,
    find_sign_in, prune_unknown_credential_counts FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_audit_partition, append_audit_events, find_api_key, find_session,
    find_sign_in, prune_unknown_credential_counts TO call2me_auth_app;

GRANT SELECT (id, email, email_key, full_name, profile, last_workspace_id, created_at),
    INSERT,
    UPDATE (full_name, profile, password_hash, last_workspace_id) ON users TO call2me_auth_app;
GRANT SELECT, INSERT (id, name, created_at), UPDATE (name, branding) ON workspaces
    TO call2me_auth_app;
GRANT SELECT, INSERT, UPDATE (role), DELETE ON memberships TO call2me_auth_app;
GRANT SELECT, INSERT,
    UPDATE (last_seen_at, refresh_generation, refreshed_at, ended_at, end_reason) ON sessions
    TO call2me_auth_app;
GRANT SELECT, INSERT,
    UPDATE (name, description, allowed_ips, revoked_at, revoked_by) ON api_keys TO call2me_auth_app;
GRANT SELECT ON api_key_activity TO call2me_auth_app;
-- Insert-only: nothing that the service does can change or remove an event. Partitions are granted
-- to nobody, since a grant on one would go round the policies of the parent.
GRANT SELECT, INSERT ON audit_events TO call2me_auth_app;
GRANT SELECT, INSERT, UPDATE (attempts) ON unknown_credential_counts TO call2me_auth_app;
GRANT SELECT, INSERT, UPDATE (agent_id, body, body_bytes, updated_at), DELETE ON documents TO call2me_auth_app;
GRANT SELECT, INSERT ON wallet_transactions TO call2me_auth_app;
GRANT SELECT, INSERT, UPDATE (retired_at) ON signing_keys TO call2me_auth_app;

-- A node that may not migrate still tells whether somebody else has.
DO $$
BEGIN
    IF to_regclass('_sqlx_migrations') IS NOT NULL THEN
        GRANT SELECT ON _sqlx_migrations TO call2me_auth_app;
    END IF;
END
$$;

ALTER TABLE users ENABLE ROW LEVEL SECURITY;
CREATE POLICY users_visible ON users FOR SELECT TO call2me_auth_app
    USING (id = current_person() OR EXISTS (
        SELECT FROM memberships m WHERE m.workspace_id = current_workspace() AND m.user_id = users.id));
CREATE POLICY users_join ON users FOR INSERT TO call2me_auth_app WITH CHECK (id = current_person());
CREATE POLICY users_change ON users FOR UPDATE TO call2me_auth_app USING (id = current_person());

ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY;
CREATE POLICY workspaces_visible ON workspaces FOR SELECT TO call2me_auth_app
    USING (id = current_workspace() OR EXISTS (
        SELECT FROM memberships m WHERE m.workspace_id = workspaces.id AND m.user_id = current_person()));
CREATE POLICY workspaces_found ON workspaces FOR INSERT TO call2me_auth_app
    WITH CHECK (id = current_workspace());
CREATE POLICY workspaces_change ON workspaces FOR UPDATE TO call2me_auth_app
    USING (id = current_workspace());

ALTER TABLE memberships ENABLE ROW LEVEL SECURITY;
CREATE POLICY memberships_visible ON memberships FOR SELECT TO call2me_auth_app
    USING (workspace_id = current_workspace() OR user_id = current_person());
CREATE POLICY memberships_join ON memberships FOR INSERT TO call2me_auth_app
    WITH CHECK (workspace_id = current_workspace());
CREATE POLICY memberships_change ON memberships FOR UPDATE TO call2me_auth_app
    USING (workspace_id = current_workspace());
CREATE POLICY memberships_leave ON memberships FOR DELETE TO call2me_auth_app
    USING (workspace_id = current_workspace());

ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
CREATE POLICY sessions_own ON sessions TO call2me_auth_app
    USING (user_id = current_person()) WITH CHECK (user_id = current_person());

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['api_keys', 'api_key_activity', 'audit_events', 'documents',
                                'wallet_transactions'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO call2me_auth_app
                        USING (workspace_id = current_workspace())
                        WITH CHECK (workspace_id = current_workspace())', name || '_workspace', name);
    END LOOP;
END
$$;
