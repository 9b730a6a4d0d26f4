-- Cache invalidation: a change that restricts a cached credential reaches every node.
--
-- Triggers record such changes, also those that are made with psql, as rows of `invalidations`. The
-- transaction that makes them gets the next generation when it commits, one for all its changes. A
-- node reads the invalidations after its generation, drops what they name from its cache, and
-- acknowledges. A change waits until every registered node has acknowledged it, or its lease has
-- expired. docs/revocation.md specifies it.

-- The newest generation, in one row. A transaction locks the row at its commit only, so generations
-- become visible in order and without gaps. Those of a sequence do not.
CREATE TABLE invalidation_generation (
    is_singleton boolean PRIMARY KEY DEFAULT true CHECK (is_singleton),
    generation bigint NOT NULL,
    -- Random. After a failover or a restore that lost generations, their numbers are assigned
    -- again; a node that has applied a lost one has another token for its number.
    token uuid NOT NULL
);
INSERT INTO invalidation_generation (generation, token) VALUES (0, gen_random_uuid());

-- The transactions that changed credentials. Transaction ids are never assigned again, except in
-- another database: `admin restore finish` deletes those of a dump.
CREATE TABLE invalidation_batches (
    transaction_id xid8 PRIMARY KEY,
    -- NULL until the commit.
    generation bigint UNIQUE,
    -- The token of the generation before.
    previous_token uuid,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX invalidation_batches_created_at_idx ON invalidation_batches (created_at);

CREATE TABLE invalidations (
    transaction_id xid8 NOT NULL,
    -- The credentials to drop: an API key, a session, a grant, all grants of a client, all
    -- credentials of a user (in one workspace, if that is set too), or all those of a workspace.
    key_digest bytea,
    session_id uuid,
    user_id uuid,
    workspace_id uuid,
    grant_id uuid,
    client_id uuid,
    CHECK (num_nonnulls(key_digest, session_id, user_id, workspace_id, grant_id, client_id) > 0)
);
CREATE INDEX invalidations_transaction_id_idx ON invalidations (transaction_id);

-- Nodes that may have cached credentials. The table is not UNLOGGED: a crash would empty it, and
-- leases outlast a crash.
CREATE TABLE nodes (
    id uuid,
    -- Counts the attempts of the node to register. PostgreSQL may execute one of them after the
    -- node gave it up; its row is then not that of the next attempt.
    registration integer,
    acknowledged_generation bigint NOT NULL,
    -- The maximum is that of `cache.lease_seconds`: a revocation may wait for as long.
    lease interval NOT NULL CHECK (lease BETWEEN interval '0' AND interval '1 minute'),
    -- Counts the renewals. A lease has expired if this number has stood still for longer than the
    -- lease, on the clock of the node that watches it.
    renewals bigint NOT NULL DEFAULT 0,
    -- Another node has seen the lease expire. This one cannot renew it, and must register again.
    is_expired boolean NOT NULL DEFAULT false,
    -- The last renewal by PostgreSQL's clock, which may be set: for reports only.
    renewed_at timestamptz NOT NULL DEFAULT database_time(),
    -- The node's watermark: it has written all its audit events from before.
    events_written_until timestamptz NOT NULL,
    -- The epoch of the clock that this time belongs to. NULL: the node does not follow the clock.
    clock_epoch bigint,
    -- The id of its `keys.encryption_key`.
    encryption_key_id bytea NOT NULL,
    -- The last time that the node renewed an expired lease. In between it may have served requests
    -- whose events were not written.
    reconnected_at timestamptz,
    PRIMARY KEY (id, registration)
);

-- Histories of the database in which every node with a lease is registered. An asynchronous
-- failover or a restore starts another history, which may lack registrations. The oid of
-- `invalidation_generation` changes when a dump is restored into the same database.
CREATE TABLE settled_histories (
    system_identifier bigint,
    timeline integer,
    database oid,
    generation_table oid,
    settled_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (system_identifier, timeline, database, generation_table)
);

------------------------------------------------------------------------------------------------
-- Triggers

-- Makes the commit of this transaction wait for the disk and for the synchronous standby, as is the
-- default: a change that is lost in a crash or a failover cannot be undone on the nodes.
CREATE FUNCTION require_synchronous_commit() RETURNS void
    LANGUAGE plpgsql SET search_path = public, pg_temp
    AS $$
    BEGIN
        IF current_setting('synchronous_commit') IN ('off', 'local') THEN
            PERFORM set_config('synchronous_commit', 'on', true);
        END IF;
    END
    $$;

-- Trigger function: assigns the next generation to a transaction, and wakes the nodes up. The
-- notification is only a hint: nodes read the tables.
CREATE FUNCTION assign_generation() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        previous invalidation_generation;
    BEGIN
        PERFORM require_synchronous_commit();
        SELECT * INTO previous FROM invalidation_generation FOR UPDATE;
        UPDATE invalidation_generation SET generation = generation + 1, token = gen_random_uuid();
        UPDATE invalidation_batches
        SET generation = previous.generation + 1, previous_token = previous.token,
            created_at = clock_timestamp()
        WHERE transaction_id = NEW.transaction_id;
        PERFORM pg_notify('call2me_invalidations', '');
        RETURN NULL;
    END
    $$;

-- Deferred: the generation is locked last and only for the commit, and once for any number of
-- changes. So changes wait for each other as little as possible, and cannot deadlock.
CREATE CONSTRAINT TRIGGER invalidation_batches_assign_generation
    AFTER INSERT ON invalidation_batches
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION assign_generation();

-- Trigger function: adds the invalidation of a changed or deleted row.
CREATE FUNCTION notify_invalidation() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        added invalidations;
    BEGIN
        CASE TG_TABLE_NAME
            WHEN 'api_keys' THEN added.key_digest := OLD.digest;
            WHEN 'sessions' THEN added.session_id := OLD.id;
            WHEN 'memberships' THEN
                added.user_id := coalesce(OLD.user_id, NEW.user_id);
                added.workspace_id := coalesce(OLD.workspace_id, NEW.workspace_id);
            WHEN 'users' THEN added.user_id := OLD.id;
            WHEN 'workspaces' THEN added.workspace_id := OLD.id;
            WHEN 'totp_factors' THEN added.user_id := OLD.user_id;
            WHEN 'oauth_grants' THEN added.grant_id := OLD.id;
            WHEN 'oauth_clients' THEN added.client_id := OLD.id;
        END CASE;
        -- A row that is deleted together with its workspace, client or user needs no invalidation
        -- of its own. A client always does: its grants may be in other workspaces.
        IF TG_OP = 'DELETE' THEN
            CASE TG_TABLE_NAME
                WHEN 'api_keys' THEN
                    IF NOT EXISTS (SELECT FROM workspaces WHERE id = OLD.workspace_id) THEN
                        RETURN NULL;
                    END IF;
                WHEN 'sessions', 'memberships' THEN
                    IF NOT EXISTS (SELECT FROM workspaces WHERE id = OLD.workspace_id)
                        OR NOT EXISTS (SELECT FROM users WHERE id = OLD.user_id) THEN
                        RETURN NULL;
                    END IF;
                WHEN 'totp_factors' THEN
                    IF NOT EXISTS (SELECT FROM users WHERE id = OLD.user_id) THEN
                        RETURN NULL;
                    END IF;
                WHEN 'oauth_grants' THEN
                    IF NOT EXISTS (SELECT FROM workspaces WHERE id = OLD.workspace_id)
                        OR NOT EXISTS (SELECT FROM oauth_clients WHERE id = OLD.client_id)
                        OR (OLD.user_id IS NOT NULL
                            AND NOT EXISTS (SELECT FROM users WHERE id = OLD.user_id)) THEN
                        RETURN NULL;
                    END IF;
                ELSE NULL;
            END CASE;
        END IF;
        added.transaction_id := pg_current_xact_id();
        INSERT INTO invalidations VALUES (added.*);
        INSERT INTO invalidation_batches (transaction_id) VALUES (added.transaction_id)
        ON CONFLICT DO NOTHING;
        RETURN NULL;
    END
    $$;

REVOKE ALL ON FUNCTION require_synchronous_commit, assign_generation, notify_invalidation
    FROM PUBLIC;

CREATE TRIGGER api_keys_notify_invalidation AFTER UPDATE ON api_keys
    FOR EACH ROW
    WHEN ((OLD.digest, OLD.name, OLD.scope, OLD.allowed_ips, OLD.creator_user_id, OLD.disabled_at,
           OLD.revoked_at, OLD.rate_limit_per_minute, OLD.workspace_id)
          IS DISTINCT FROM
          (NEW.digest, NEW.name, NEW.scope, NEW.allowed_ips, NEW.creator_user_id, NEW.disabled_at,
           NEW.revoked_at, NEW.rate_limit_per_minute, NEW.workspace_id))
    EXECUTE FUNCTION notify_invalidation();
CREATE TRIGGER api_keys_notify_invalidation_on_delete AFTER DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION notify_invalidation();

CREATE TRIGGER sessions_notify_invalidation AFTER UPDATE ON sessions
    FOR EACH ROW
    WHEN ((OLD.user_id, OLD.workspace_id, OLD.expires_at, OLD.ended_at, OLD.passkey_id,
           OLD.cookie_digest, OLD.credential_generation)
          IS DISTINCT FROM
          (NEW.user_id, NEW.workspace_id, NEW.expires_at, NEW.ended_at, NEW.passkey_id,
           NEW.cookie_digest, NEW.credential_generation))
    EXECUTE FUNCTION notify_invalidation();
CREATE TRIGGER sessions_notify_invalidation_on_delete AFTER DELETE ON sessions
    FOR EACH ROW EXECUTE FUNCTION notify_invalidation();

-- Also for a new member: a session may be cached as that of a user who is no member.
CREATE TRIGGER memberships_notify_invalidation
    AFTER INSERT OR UPDATE OR DELETE ON memberships
    FOR EACH ROW EXECUTE FUNCTION notify_invalidation();

CREATE TRIGGER users_notify_invalidation AFTER UPDATE ON users
    FOR EACH ROW
    WHEN ((OLD.email, OLD.full_name) IS DISTINCT FROM (NEW.email, NEW.full_name))
    EXECUTE FUNCTION notify_invalidation();
CREATE TRIGGER users_notify_invalidation_on_delete AFTER DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION notify_invalidation();

CREATE TRIGGER workspaces_notify_invalidation AFTER UPDATE ON workspaces
    FOR EACH ROW
    WHEN ((OLD.rate_limit_per_minute, OLD.require_second_factor)
          IS DISTINCT FROM (NEW.rate_limit_per_minute, NEW.require_second_factor))
    EXECUTE FUNCTION notify_invalidation();
CREATE TRIGGER workspaces_notify_invalidation_on_delete AFTER DELETE ON workspaces
    FOR EACH ROW EXECUTE FUNCTION notify_invalidation();

CREATE TRIGGER totp_factors_notify_invalidation AFTER UPDATE ON totp_factors
    FOR EACH ROW
    WHEN (OLD.confirmed_at IS DISTINCT FROM NEW.confirmed_at)
    EXECUTE FUNCTION notify_invalidation();
CREATE TRIGGER totp_factors_notify_invalidation_on_delete AFTER DELETE ON totp_factors
    FOR EACH ROW
    WHEN (OLD.confirmed_at IS NOT NULL)
    EXECUTE FUNCTION notify_invalidation();

CREATE TRIGGER oauth_grants_notify_invalidation AFTER UPDATE ON oauth_grants
    FOR EACH ROW
    WHEN ((OLD.client_id, OLD.workspace_id, OLD.user_id, OLD.scope, OLD.passkey_id,
           OLD.revoked_tokens, OLD.ended_at)
          IS DISTINCT FROM
          (NEW.client_id, NEW.workspace_id, NEW.user_id, NEW.scope, NEW.passkey_id,
           NEW.revoked_tokens, NEW.ended_at))
    EXECUTE FUNCTION notify_invalidation();
CREATE TRIGGER oauth_grants_notify_invalidation_on_delete AFTER DELETE ON oauth_grants
    FOR EACH ROW
    WHEN (OLD.ended_at IS NULL AND OLD.redeemed_at IS NOT NULL)
    EXECUTE FUNCTION notify_invalidation();

CREATE TRIGGER oauth_clients_notify_invalidation AFTER UPDATE ON oauth_clients
    FOR EACH ROW WHEN (OLD.name IS DISTINCT FROM NEW.name)
    EXECUTE FUNCTION notify_invalidation();
CREATE TRIGGER oauth_clients_notify_invalidation_on_delete AFTER DELETE ON oauth_clients
    FOR EACH ROW EXECUTE FUNCTION notify_invalidation();

------------------------------------------------------------------------------------------------
-- Nodes
--
-- A revocation waits for the nodes in the table, and is not answered before. So what a node says
-- about itself or about another one needs a MAC of a node: injected SQL could make each revocation
-- wait, or let it not wait for a node that still accepts the credential.

-- True if a generation with this token is in the history of this database, and no invalidation
-- after it was pruned.
CREATE FUNCTION is_known_generation(p_generation bigint, p_token uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT EXISTS (SELECT FROM invalidation_generation
                       WHERE generation = p_generation AND token = p_token)
            OR EXISTS (SELECT FROM invalidation_batches
                       WHERE generation = p_generation + 1 AND previous_token = p_token)
    $$;

-- Registers a node with an empty cache. Returns the generation after which it must apply
-- invalidations; no row if the database is in quarantine. Deletes nodes whose lease expired more
-- than a day ago. They are kept until then because they may have lost audit events.
-- `p_events_written_until` is in microseconds since 1970.
CREATE FUNCTION register_node(
    p_id uuid, p_registration integer, p_lease interval, p_events_written_until bigint,
    p_clock_epoch bigint, p_issued_at bigint, p_key_id bytea, p_mac bytea
) RETURNS TABLE (generation bigint, token uuid)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    #variable_conflict use_column
    DECLARE
        newest invalidation_generation;
    BEGIN
        PERFORM require_fresh_decision(
            'register_node',
            uuid_send(p_id) || int4send(p_registration) || interval_send(p_lease)
                || int8send(p_events_written_until) || int8send(coalesce(p_clock_epoch, -1)),
            p_issued_at, p_key_id, p_mac);
        IF quarantine_reason() IS NOT NULL THEN
            RETURN;
        END IF;
        PERFORM claim_database();
        -- An isolated primary must grant no lease.
        PERFORM require_synchronous_commit();
        DELETE FROM nodes
        WHERE is_expired AND renewed_at + lease < database_time() - interval '1 day';
        SELECT * INTO newest FROM invalidation_generation;
        -- The node creates values with its key from now on.
        UPDATE context_keys SET replaced_at = NULL
        WHERE id = p_key_id AND replaced_at IS NOT NULL;
        DELETE FROM nodes WHERE id = p_id AND registration < p_registration;
        INSERT INTO nodes (id, registration, acknowledged_generation, lease, events_written_until,
                           clock_epoch, encryption_key_id, reconnected_at)
        VALUES (p_id, p_registration, newest.generation, p_lease,
                timestamp_of_micros(p_events_written_until), p_clock_epoch, p_key_id,
                CASE WHEN p_registration > 1 THEN database_time() END);
        RETURN QUERY SELECT newest.generation, newest.token;
    END
    $$;

-- Renews a node's lease. Returns false if the node must register again: it is not registered, its
-- lease has expired, this database does not know the generation that it has applied, or it is in
-- quarantine. `p_events_written_until` is in microseconds since 1970.
CREATE FUNCTION renew_lease(
    p_id uuid, p_registration integer, p_generation bigint, p_token uuid, p_lease interval,
    p_events_written_until bigint, p_clock_epoch bigint, p_issued_at bigint, p_key_id bytea,
    p_mac bytea
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM require_fresh_decision(
            'renew_lease',
            uuid_send(p_id) || int4send(p_registration) || int8send(p_generation)
                || uuid_send(p_token) || interval_send(p_lease)
                || int8send(p_events_written_until) || int8send(coalesce(p_clock_epoch, -1)),
            p_issued_at, p_key_id, p_mac);
        -- An isolated primary must grant no lease.
        PERFORM require_synchronous_commit();
        UPDATE nodes
        SET acknowledged_generation = p_generation, lease = p_lease, renewals = renewals + 1,
            renewed_at = database_time(),
            events_written_until = timestamp_of_micros(p_events_written_until),
            clock_epoch = p_clock_epoch,
            -- After a change of the clock, idle time starts again in any case.
            reconnected_at = CASE WHEN renewed_at + lease < database_time()
                                       AND clock_epoch IS NOT DISTINCT FROM p_clock_epoch
                                  THEN database_time() ELSE reconnected_at END
        WHERE id = p_id AND registration = p_registration AND NOT is_expired
          AND is_known_generation(p_generation, p_token) AND quarantine_reason() IS NULL;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        -- The heartbeat: it shows the node that its subscription works.
        PERFORM pg_notify('call2me_acknowledgements', '');
        RETURN true;
    END
    $$;

-- Records that a node has applied all invalidations up to a generation, unless this database does
-- not know it. The commit is asynchronous: if a crash loses it, the next renewal repeats it.
CREATE FUNCTION acknowledge_generation(
    p_id uuid, p_registration integer, p_generation bigint, p_token uuid, p_key_id bytea,
    p_mac bytea
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM require_signed_decision(
            'acknowledge_generation',
            uuid_send(p_id) || int4send(p_registration) || int8send(p_generation)
                || uuid_send(p_token),
            p_key_id, p_mac);
        PERFORM set_config('synchronous_commit', 'off', true);
        UPDATE nodes SET acknowledged_generation = p_generation
        WHERE id = p_id AND registration = p_registration
          AND is_known_generation(p_generation, p_token);
        PERFORM pg_notify('call2me_acknowledgements', '');
    END
    $$;

CREATE FUNCTION deregister_node(p_id uuid, p_key_id bytea, p_mac bytea) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT require_signed_decision('deregister_node', uuid_send(p_id), p_key_id, p_mac);
        DELETE FROM nodes WHERE id = p_id;
        SELECT pg_notify('call2me_acknowledgements', '');
    $$;

-- Returns the nodes that may use their caches and have not acknowledged a generation.
CREATE FUNCTION find_unacknowledged_nodes(p_generation bigint)
    RETURNS TABLE (id uuid, registration integer, renewals bigint, lease interval)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT id, registration, renewals, lease FROM nodes
        WHERE acknowledged_generation < p_generation AND NOT is_expired
    $$;

-- Records that a lease has expired, unless it was renewed since `p_renewals`.
CREATE FUNCTION expire_lease(p_id uuid, p_registration integer, p_renewals bigint, p_key_id bytea,
                             p_mac bytea)
    RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT require_signed_decision(
            'expire_lease', uuid_send(p_id) || int4send(p_registration) || int8send(p_renewals),
            p_key_id, p_mac);
        SELECT require_synchronous_commit();
        UPDATE nodes SET is_expired = true
        WHERE (id, registration, renewals) = (p_id, p_registration, p_renewals);
    $$;

------------------------------------------------------------------------------------------------
-- Histories

-- Returns true if every node with a lease is registered in this history. Records it if a node knows
-- it, with a MAC, and in a new database, which no node has used.
CREATE FUNCTION settle_history(
    p_system_identifier bigint, p_timeline integer, p_database oid, p_generation_table oid,
    p_is_settled boolean, p_key_id bytea, p_mac bytea
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        IF p_is_settled THEN
            PERFORM require_signed_decision(
                'settle_history',
                int8send(p_system_identifier) || int4send(p_timeline) || oidsend(p_database)
                    || oidsend(p_generation_table),
                p_key_id, p_mac);
        END IF;
        INSERT INTO settled_histories (system_identifier, timeline, database, generation_table)
        SELECT p_system_identifier, p_timeline, p_database, p_generation_table
        WHERE p_is_settled
           OR NOT EXISTS (SELECT FROM settled_histories) AND NOT EXISTS (SELECT FROM nodes)
        ON CONFLICT DO NOTHING;
        RETURN EXISTS (
            SELECT FROM settled_histories
            WHERE (system_identifier, timeline, database, generation_table)
                  = (p_system_identifier, p_timeline, p_database, p_generation_table));
    END
    $$;

------------------------------------------------------------------------------------------------
-- Generations

CREATE FUNCTION newest_generation() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT generation FROM invalidation_generation $$;

-- Returns the invalidations after a generation with their age in seconds, each together with the
-- newest generation of the same snapshot. If there are none, returns one row with that alone.
-- `applied_token` is the token of `p_generation`. NULL: it does not exist, or invalidations after
-- it were pruned.
CREATE FUNCTION invalidations_since(p_generation bigint)
    RETURNS TABLE (newest_generation bigint, newest_token uuid, applied_token uuid,
                   generation bigint, key_digest bytea, session_id uuid, user_id uuid,
                   workspace_id uuid, grant_id uuid, client_id uuid, age_seconds double precision)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT newest.generation, newest.token,
               CASE WHEN newest.generation = p_generation THEN newest.token
                    ELSE (SELECT next.previous_token FROM invalidation_batches next
                          WHERE next.generation = p_generation + 1)
               END,
               b.generation, i.key_digest, i.session_id, i.user_id, i.workspace_id, i.grant_id,
               i.client_id,
               extract(epoch FROM clock_timestamp() - b.created_at)::double precision
        FROM invalidation_generation newest
        LEFT JOIN (invalidation_batches b JOIN invalidations i USING (transaction_id))
            ON b.generation > p_generation
    $$;

-- Deletes invalidations that are older than ten minutes. A node that was disconnected for longer
-- detects the gap and clears its cache.
CREATE FUNCTION prune_invalidations() RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        WITH pruned AS (
            DELETE FROM invalidation_batches WHERE created_at < now() - interval '10 minutes'
            RETURNING transaction_id
        )
        DELETE FROM invalidations i USING pruned p WHERE i.transaction_id = p.transaction_id
    $$;

REVOKE ALL ON FUNCTION is_known_generation, register_node, renew_lease, acknowledge_generation,
    deregister_node, find_unacknowledged_nodes, expire_lease, settle_history,
    newest_generation, invalidations_since, prune_invalidations
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION register_node, renew_lease, acknowledge_generation, deregister_node,
    find_unacknowledged_nodes, expire_lease, settle_history,
    newest_generation, invalidations_since, prune_invalidations
    TO call2me_auth_app;
