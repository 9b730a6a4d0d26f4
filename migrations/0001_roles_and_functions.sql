-- The role of the service, and functions that all areas of the schema use.
--
-- Every query of the service names its workspace. Row-level security is the second barrier: a
-- transaction of the role `call2me_auth_app` sees one workspace and one user, those of the settings
-- `call2me.workspace_id` and `call2me.user_id`. The role owns nothing, so the policies apply to it.
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
-- SECURITY DEFINER functions look up names in this schema. No other role may create objects here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- A node without the right to migrate reads the version of the schema. The table does not exist if
-- the files are applied with psql.
DO $$
BEGIN
    IF to_regclass('_sqlx_migrations') IS NOT NULL THEN
        GRANT SELECT ON _sqlx_migrations TO call2me_auth_app;
    END IF;
END
$$;

------------------------------------------------------------------------------------------------
-- Workspace and user of a transaction

-- After the end of a SET LOCAL a custom setting is empty instead of NULL, hence NULLIF.
CREATE FUNCTION current_workspace_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT NULLIF(current_setting('call2me.workspace_id', true), '')::uuid $$;

CREATE FUNCTION current_user_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT NULLIF(current_setting('call2me.user_id', true), '')::uuid $$;

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
