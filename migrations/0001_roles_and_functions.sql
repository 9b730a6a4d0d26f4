-- The role of the service, and functions that all areas of the schema use.
--
-- Every query of the service names its workspace. Row-level security is the second barrier: a
-- transaction of the role `call2me_auth_app` sees one workspace and one user, those of its context.
-- Only the service can set a context, because it takes a MAC: SQL that an attacker injects cannot.
-- The role owns nothing, so the policies apply to it.
--
-- SECURITY DEFINER functions run as the owner of the tables, and policies do not apply to owners.
-- They are for lookups before the caller is authenticated, for work on several workspaces, and for
-- tables that the role must not read as a whole.
--
-- Parameters of functions have the prefix `p_`: in SQL functions, a column takes precedence over a
-- parameter of the same name.

------------------------------------------------------------------------------------------------
-- Role

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'call2me_auth_app') THEN
        CREATE ROLE call2me_auth_app NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
    END IF;
EXCEPTION
    -- Roles are shared by all databases of a cluster, and another migration may run concurrently.
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

-- If the service logs in as the owner of the tables, it works as the role by SET ROLE. Since
-- PostgreSQL 16 the creator of a role is a member with ADMIN OPTION only, and must grant itself the
-- right to SET ROLE. Older versions do not know the privilege SET: there, every member has it.
DO $$
BEGIN
    IF NOT pg_has_role(
        current_user, 'call2me_auth_app',
        CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET'
             ELSE 'MEMBER' END)
    THEN
        EXECUTE format('GRANT call2me_auth_app TO %I', current_user);
    END IF;
EXCEPTION
    -- The login may not grant the role. The service must then log in as the role itself, which it
    -- checks when it starts.
    WHEN insufficient_privilege THEN NULL;
END
$$;

GRANT USAGE ON SCHEMA public TO call2me_auth_app;
-- Large objects belong to no workspace and outlive the request that creates them. PostgreSQL lets
-- every role create them by default.
DO $$
DECLARE
    large_object_function regprocedure;
BEGIN
    FOR large_object_function IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace
          AND (proname LIKE 'lo\_%' OR proname IN ('loread', 'lowrite'))
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC, call2me_auth_app',
                       large_object_function);
    END LOOP;
EXCEPTION
    -- Only a superuser may revoke it.
    WHEN insufficient_privilege THEN NULL;
END
$$;
-- SECURITY DEFINER functions look up names in this schema. No other role may create objects here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- A temporary table or function would outlive the request whose injected SQL created it, and meet
-- the next request on the same connection. PostgreSQL lets every role create them by default.
DO $$
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC, call2me_auth_app',
                   current_database());
EXCEPTION
    -- Only the owner of the database may revoke it. Names are still looked up in `public` first:
    -- each connection of the service has that search path.
    WHEN insufficient_privilege THEN NULL;
END
$$;

-- A node without the right to migrate reads the version of the schema. The table does not exist if
-- the files are applied with psql.
DO $$
BEGIN
    IF to_regclass('_sqlx_migrations') IS NOT NULL THEN
        GRANT SELECT ON _sqlx_migrations TO call2me_auth_app;
    END IF;
END
$$;

-- Returns the version of the oldest nodes that may continue to run on a version of the schema. Only
-- nodes of the same version may, unless the migration to it replaces this function and says so.
CREATE FUNCTION oldest_compatible_version(p_schema_version bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT p_schema_version $$;
REVOKE ALL ON FUNCTION oldest_compatible_version FROM PUBLIC;
GRANT EXECUTE ON FUNCTION oldest_compatible_version TO call2me_auth_app;

------------------------------------------------------------------------------------------------
-- The clock
--
-- All nodes take the time from PostgreSQL, so they agree on it even if their own clocks differ. The
-- clock of PostgreSQL may change, too: an operator sets it, or another server is promoted. Nodes
-- notice that by their monotonic clocks, and begin a new epoch here before they use the new time.
-- Times of two epochs cannot be compared. See `src/env/database_clock.rs`.

-- Returns the time. SQL takes it from here, so that tests can change it.
CREATE FUNCTION database_time() RETURNS timestamptz
    LANGUAGE sql PARALLEL SAFE
    AS $$ SELECT clock_timestamp() $$;

-- The epoch of the clock, in one row.
CREATE TABLE clock_epoch (
    is_singleton boolean PRIMARY KEY DEFAULT true CHECK (is_singleton),
    epoch bigint NOT NULL,
    started_at timestamptz NOT NULL,
    -- The last time that a node read, within a second.
    observed_at timestamptz NOT NULL
);
INSERT INTO clock_epoch (epoch, started_at, observed_at)
VALUES (0, database_time(), database_time());

-- Returns the time and the epoch. Begins a new epoch if the time is before the last reading, if the
-- caller noticed that the clock has changed, or if no node has read the clock for `p_max_gap`
-- microseconds: a change may have gone unnoticed. NULL allows any gap; it is for nodes that have
-- read the clock before, and compare the gap with their own clock.
--
-- An epoch restarts the idle times and pauses of all workspaces. So the last two need a MAC of a
-- node, which is valid for 30 seconds. `p_issued_at` is its time in microseconds since 1970.
CREATE FUNCTION observe_clock(p_has_changed boolean, p_max_gap bigint, p_issued_at bigint,
                              p_key_id bytea, p_mac bytea)
    RETURNS TABLE (present timestamptz, epoch bigint, started_at timestamptz)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    #variable_conflict use_column
    DECLARE
        time_read CONSTANT timestamptz := database_time();
        clock clock_epoch;
    BEGIN
        IF p_has_changed OR p_max_gap IS NOT NULL THEN
            PERFORM require_fresh_decision(
                'observe_clock', boolsend(p_has_changed) || int8send(coalesce(p_max_gap, -1)),
                p_issued_at, p_key_id, p_mac);
        END IF;
        SELECT * INTO clock FROM clock_epoch;
        IF p_has_changed OR time_read < clock.observed_at - interval '1 second'
            OR time_read > clock.observed_at + p_max_gap * interval '1 microsecond'
        THEN
            PERFORM require_synchronous_commit();
            UPDATE clock_epoch
            SET epoch = epoch + 1, started_at = database_time(), observed_at = database_time()
            RETURNING * INTO clock;
        ELSIF time_read > clock.observed_at + interval '1 second' THEN
            -- A crash may lose it: the next node then finds a longer gap.
            PERFORM set_config('synchronous_commit', 'off', true);
            UPDATE clock_epoch SET observed_at = time_read WHERE observed_at < time_read;
        END IF;
        RETURN QUERY SELECT database_time(), clock.epoch, clock.started_at;
    END
    $$;

-- Returns true if this is the present epoch, or NULL: the caller does not follow the clock.
CREATE FUNCTION is_present_epoch(p_epoch bigint) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT p_epoch IS NULL OR p_epoch = (SELECT epoch FROM clock_epoch) $$;

REVOKE ALL ON FUNCTION database_time, observe_clock, is_present_epoch FROM PUBLIC;
GRANT EXECUTE ON FUNCTION database_time, observe_clock, is_present_epoch TO call2me_auth_app;

------------------------------------------------------------------------------------------------
-- The context of a transaction: its workspace and its user
--
-- 1. The service calls set_context() with the workspace and user that it has authenticated, and
--    with a MAC over them and the time. The key of the MAC is derived from `keys.encryption_key`.
-- 2. set_context() checks the MAC and that the user is a member of the workspace, and stores the
--    context in a setting of the transaction, with a seal. The seal is a MAC over the context, the
--    backend and the time at which the transaction began, under a key that never leaves the
--    database.
-- 3. Policies read the context with current_workspace_id() and current_user_id(), which check the
--    seal. A setting that is forged, or was sealed for another transaction, is no context.
--
-- Policies call these functions in a subquery, which runs once for each statement and not for each
-- row.

-- The keys of contexts, one for each `keys.encryption_key` that the data may need, as the two
-- blocks of HMAC (RFC 2104): the key, padded to 64 bytes, XOR 0x36 and XOR 0x5c. No other role has
-- rights.
CREATE TABLE context_keys (
    -- The first eight bytes of the SHA-256 of the key. Sealed values start with it.
    id bytea PRIMARY KEY CHECK (octet_length(id) = 8),
    inner_block bytea NOT NULL CHECK (octet_length(inner_block) = 64),
    outer_block bytea NOT NULL CHECK (octet_length(outer_block) = 64),
    -- The time since which no node creates values with the key. NULL while one may.
    replaced_at timestamptz
);

-- The ids of keys that the operator has discarded. A node that has such a key configured does not
-- start, and no node adds it again. Only the owner writes them.
CREATE TABLE discarded_context_keys (
    id bytea PRIMARY KEY CHECK (octet_length(id) = 8),
    discarded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The key of seals, in one row. A UUID has 122 random bits of a strong source. No other role has
-- rights.
CREATE TABLE context_seal_key (
    is_single boolean PRIMARY KEY DEFAULT true CHECK (is_single),
    secret bytea NOT NULL CHECK (octet_length(secret) = 32)
);
INSERT INTO context_seal_key (secret)
VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

-- Stores the key of the first node, if there is none: `call2me-auth migrate` does not know the key,
-- and no SQL can be injected before a node runs. Returns false if there are only other keys.
CREATE FUNCTION store_first_context_key(p_id bytea, p_inner_block bytea, p_outer_block bytea)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        LOCK TABLE context_keys IN SHARE ROW EXCLUSIVE MODE;
        INSERT INTO context_keys (id, inner_block, outer_block)
        SELECT p_id, p_inner_block, p_outer_block
        WHERE NOT EXISTS (SELECT FROM context_keys)
          AND NOT EXISTS (SELECT FROM discarded_context_keys WHERE id = p_id);
        RETURN EXISTS (SELECT FROM context_keys WHERE id = p_id);
    END
    $$;

-- Computes HMAC-SHA-256 from the two blocks of a key. pgcrypto is not available everywhere.
CREATE FUNCTION hmac_sha256(p_inner_block bytea, p_outer_block bytea, p_message bytea) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT sha256(p_outer_block || sha256(p_inner_block || p_message)) $$;

-- Computes the seal of a context, workspace and user, for the current transaction of the current
-- backend. The message has a fixed length, so a hash of secret and message is a MAC: nothing can be
-- appended to it. It costs half of HMAC, in each statement.
CREATE FUNCTION context_seal(p_secret bytea, p_context bytea) RETURNS bytea
    LANGUAGE sql STABLE
    AS $$
        SELECT sha256(p_secret || p_context || int4send(pg_backend_pid())
                      || timestamptz_send(transaction_timestamp()))
    $$;

-- Adds a key. The MAC, under a stored key, proves that the caller is a node: it covers the
-- parameters before, which are longer than a context.
CREATE FUNCTION add_context_key(p_id bytea, p_inner_block bytea, p_outer_block bytea,
                                p_known_id bytea, p_mac bytea)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        -- Locked, so that a key which is being removed adds no other.
        PERFORM FROM context_keys k
        WHERE k.id = p_known_id
          AND sha256(hmac_sha256(k.inner_block, k.outer_block,
                                 p_id || p_inner_block || p_outer_block))
              = sha256(p_mac)
        FOR KEY SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the MAC of the key is wrong' USING ERRCODE = 'insufficient_privilege';
        END IF;
        INSERT INTO context_keys (id, inner_block, outer_block)
        SELECT p_id, p_inner_block, p_outer_block
        WHERE NOT EXISTS (SELECT FROM discarded_context_keys WHERE id = p_id)
        ON CONFLICT DO NOTHING;
    END
    $$;

CREATE FUNCTION list_context_keys() RETURNS SETOF bytea
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT id FROM context_keys ORDER BY id $$;

CREATE FUNCTION list_discarded_context_keys() RETURNS SETOF bytea
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT id FROM discarded_context_keys ORDER BY id $$;

-- Sets the context of the current transaction. A NULL or nil id is none. `p_issued_at` is the time
-- of the MAC by the clock of this server, in microseconds since 1970: a MAC that leaks into a log
-- is of no use later. The service then tries again (MC001).
--
-- A user must be a member of the workspace (MC002): the service may have read either id from a row
-- that injected SQL can write. The user of a request that creates the workspace, or presents an
-- invitation to it, becomes a member only in this transaction. The MAC then covers another byte.
CREATE FUNCTION set_context(p_workspace_id uuid, p_user_id uuid, p_issued_at bigint, p_key_id bytea,
                            p_mac bytea, p_is_joining boolean DEFAULT false)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        nil CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
        context CONSTANT bytea :=
            uuid_send(coalesce(p_workspace_id, nil)) || uuid_send(coalesce(p_user_id, nil));
        message CONSTANT bytea := context || int8send(p_issued_at)
            || CASE WHEN p_is_joining THEN '\x01'::bytea ELSE ''::bytea END;
        now_us CONSTANT bigint := extract(epoch FROM database_time()) * 1000000;
    BEGIN
        -- Digests are compared, so that the duration says nothing about the expected MAC.
        IF NOT EXISTS (
            SELECT FROM context_keys k
            WHERE k.id = p_key_id
              AND sha256(hmac_sha256(k.inner_block, k.outer_block, message)) = sha256(p_mac))
        THEN
            RAISE EXCEPTION 'the MAC of the context is wrong'
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        IF p_issued_at NOT BETWEEN now_us - 30000000 AND now_us + 30000000 THEN
            RAISE EXCEPTION 'the MAC of the context has expired' USING ERRCODE = 'MC001';
        END IF;
        IF p_is_joining IS NOT TRUE AND NULLIF(p_workspace_id, nil) IS NOT NULL
           AND NULLIF(p_user_id, nil) IS NOT NULL
           AND NOT EXISTS (SELECT FROM memberships m
                           WHERE m.workspace_id = p_workspace_id AND m.user_id = p_user_id)
        THEN
            RAISE EXCEPTION 'the user of the context is not a member of its workspace'
                USING ERRCODE = 'MC002';
        END IF;
        PERFORM set_config('call2me.context',
                           (context || context_seal(k.secret, context))::text, true)
        FROM context_seal_key k;
    END
    $$;

-- Returns a part of the context: the id that starts at a byte. NULL if the transaction has no
-- context, or if its seal is wrong. The backend of a parallel worker is another one, hence
-- RESTRICTED.
CREATE FUNCTION context_part(p_start integer) RETURNS uuid
    LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        -- After the end of a transaction the setting is empty instead of NULL.
        setting CONSTANT bytea := current_setting('call2me.context', true)::bytea;
    BEGIN
        IF length(setting) IS DISTINCT FROM 64 THEN
            RETURN NULL;
        END IF;
        RETURN (
            SELECT NULLIF(encode(substr(setting, p_start, 16), 'hex')::uuid,
                          '00000000-0000-0000-0000-000000000000')
            FROM context_seal_key k
            -- A transaction is too short to guess its seal by the duration of this comparison.
            WHERE context_seal(k.secret, substr(setting, 1, 32)) = substr(setting, 33));
    END
    $$;

CREATE FUNCTION current_workspace_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL RESTRICTED
    AS $$ SELECT context_part(1) $$;

CREATE FUNCTION current_user_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL RESTRICTED
    AS $$ SELECT context_part(17) $$;

-- Checks that a node decided this: a purpose with its values, as a message. The digest of the
-- purpose comes first, and all messages are longer than those of contexts, so that no MAC is valid
-- for something else. For use in SECURITY DEFINER functions.
CREATE FUNCTION require_signed_decision(p_purpose text, p_values bytea, p_key_id bytea, p_mac bytea)
    RETURNS void
    LANGUAGE plpgsql
    AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM context_keys k
            WHERE k.id = p_key_id
              AND sha256(hmac_sha256(k.inner_block, k.outer_block,
                                     sha256(convert_to(p_purpose, 'UTF8')) || p_values))
                  = sha256(p_mac))
        THEN
            RAISE EXCEPTION 'the MAC of % is wrong', p_purpose
                USING ERRCODE = 'insufficient_privilege';
        END IF;
    END
    $$;

-- As require_signed_decision(), for a decision of the last 30 seconds: a MAC that leaks is of no
-- use later. `p_issued_at` is its time in microseconds since 1970, which follows the values.
CREATE FUNCTION require_fresh_decision(p_purpose text, p_values bytea, p_issued_at bigint,
                                       p_key_id bytea, p_mac bytea)
    RETURNS void
    LANGUAGE plpgsql
    AS $$
    DECLARE
        now_us CONSTANT bigint := extract(epoch FROM database_time()) * 1000000;
    BEGIN
        PERFORM require_signed_decision(p_purpose, p_values || int8send(p_issued_at), p_key_id,
                                        p_mac);
        IF p_issued_at NOT BETWEEN now_us - 30000000 AND now_us + 30000000 THEN
            RAISE EXCEPTION 'the MAC of % has expired', p_purpose USING ERRCODE = 'MC001';
        END IF;
    END
    $$;

-- Converts microseconds since 1970, in which MACs cover times.
CREATE FUNCTION timestamp_of_micros(p_micros bigint) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ SELECT timestamptz 'epoch' + p_micros * interval '1 microsecond' $$;

REVOKE ALL ON FUNCTION hmac_sha256, context_seal, set_context, context_part,
    require_signed_decision, require_fresh_decision, timestamp_of_micros,
    store_first_context_key, add_context_key, list_context_keys, list_discarded_context_keys
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION set_context, context_part, store_first_context_key, add_context_key,
    list_context_keys, list_discarded_context_keys TO call2me_auth_app;

------------------------------------------------------------------------------------------------
-- UUIDv7: the first 48 bits are the time in milliseconds

-- Returns the smallest UUIDv7 of a time: ids that are created from then on are not smaller.
CREATE FUNCTION uuidv7_lower_bound(p_time timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
        SELECT (lpad(to_hex(floor(extract(epoch FROM p_time) * 1000)::bigint), 12, '0')
                || repeat('0', 20))::uuid
    $$;

-- Returns the time at which a UUIDv7 was created.
CREATE FUNCTION uuidv7_timestamp(p_id uuid) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
        SELECT to_timestamp(
            ('x' || lpad(left(replace(p_id::text, '-', ''), 12), 16, '0'))::bit(64)::bigint
            / 1000.0)
    $$;

------------------------------------------------------------------------------------------------
-- Values that every node can read
--
-- A node reads rows of many workspaces in one query, so a value that it cannot decode would cost
-- all of them their answer. The checks on tables refuse such values, also of injected SQL. The last
-- file adds those of times, arrays and JSON to all columns.

-- True for a time that a node can decode, and to which it can add any duration of its settings.
CREATE FUNCTION is_supported_time(p_time timestamptz) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT p_time >= '0001-01-01 00:00:00+00' AND p_time < '9000-01-01 00:00:00+00' $$;

-- True for an array of one dimension that starts at 1 and has no NULL.
CREATE FUNCTION is_plain_array(p_array anyarray) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT CASE WHEN coalesce(array_ndims(p_array), 1) > 1 THEN false
                    ELSE coalesce(array_lower(p_array, 1), 1) = 1
                         AND array_position(p_array, NULL) IS NULL END
    $$;

-- True for JSON that a node can parse: no number that is out of range of a double, and no deep
-- nesting.
CREATE FUNCTION is_readable_json(p_json jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT p_json = '{}' OR NOT (
            p_json @? '$.** ? (@.type() == "number" && (@ > 1e300 || @ < -1e300))'
            OR p_json @? '$.**{100 to last}')
    $$;

-- True if no text is longer than this, so that an index can hold each.
CREATE FUNCTION are_at_most(p_texts text[], p_max_bytes integer) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT coalesce(max(octet_length(text)), 0) <= p_max_bytes FROM unnest(p_texts) AS text
    $$;

REVOKE ALL ON FUNCTION is_supported_time, is_plain_array, is_readable_json, are_at_most
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION is_supported_time, is_plain_array, is_readable_json, are_at_most
    TO call2me_auth_app;

------------------------------------------------------------------------------------------------
-- Deletion of old rows
--
-- The role calls the prune functions, so injected SQL can too. They take the time of the service,
-- but the times for which rows are kept are in the functions, or have the MAC of a node.

-- Returns the time from which the age of rows counts: that of the service, unless it is in the
-- future of this server. It is STABLE, so that prune functions use their indexes.
CREATE FUNCTION pruning_time(p_now timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE
    AS $$ SELECT least(p_now, transaction_timestamp()) $$;

REVOKE ALL ON FUNCTION pruning_time FROM PUBLIC;

------------------------------------------------------------------------------------------------
-- Irreversible ends

-- Trigger function: a revoked or ended credential stays so. Not even the owner can undo it.
CREATE FUNCTION reject_reactivation() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
    BEGIN
        RAISE EXCEPTION '% % cannot become active again', TG_ARGV[0], OLD.id
            USING ERRCODE = 'insufficient_privilege';
    END
    $$;
