-- Users, workspaces, and the memberships of users in workspaces.

CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text NOT NULL,
    -- The address in lower case. Addresses are compared in this form.
    normalized_email text NOT NULL,
    full_name text,
    -- A PHC string (argon2id). The role may write it but not read it.
    password_hash text,
    -- Other fields that clients store with `PATCH /v1/users/me`. The type is `json` because `jsonb`
    -- reorders fields and writes large numbers in a form that other parsers do not read.
    profile json NOT NULL DEFAULT '{}',
    last_workspace_id uuid,
    created_at timestamptz NOT NULL,
    email_verified_at timestamptz,
    -- Until this time, a password reset ends what was set up before: the address was proven by a
    -- link alone, and its owner may not be the one that chose the password.
    reclaimable_until timestamptz,
    CONSTRAINT users_normalized_email_key UNIQUE (normalized_email)
);

CREATE TABLE workspaces (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    branding json NOT NULL DEFAULT '{}',
    -- Requests per minute for each credential of the workspace. NULL: the configured default.
    rate_limit_per_minute integer CHECK (rate_limit_per_minute > 0),
    created_at timestamptz NOT NULL,
    require_second_factor boolean NOT NULL DEFAULT false
);

CREATE TABLE memberships (
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member', 'viewer')),
    joined_at timestamptz NOT NULL,
    -- The name and profile of the user that API keys of this workspace store and read. Those in
    -- `users` belong to the user's own sessions.
    full_name text,
    profile json NOT NULL DEFAULT '{}',
    -- The credentials that invited the member, or set the role since: a user, directly or through
    -- an API key, and that key. NULL: the user created the workspace. The key has no foreign key,
    -- because API keys are in a later file.
    role_set_by_user_id uuid REFERENCES users ON DELETE SET NULL,
    role_set_by_key_id uuid,
    PRIMARY KEY (workspace_id, user_id)
);
CREATE INDEX memberships_user_id_idx ON memberships (user_id);
CREATE INDEX memberships_role_set_by_user_id_idx ON memberships (role_set_by_user_id)
    WHERE role_set_by_user_id IS NOT NULL;

------------------------------------------------------------------------------------------------
-- Rights of the role

GRANT SELECT (id, email, normalized_email, full_name, profile, last_workspace_id, created_at,
              email_verified_at, reclaimable_until),
    INSERT (id, email, normalized_email, full_name, password_hash, profile, last_workspace_id,
            created_at),
    UPDATE (full_name, profile, password_hash, last_workspace_id)
    ON users TO call2me_auth_app;
-- Workspaces and memberships are inserted by create_workspace() and accept_invitation() only, and
-- memberships are deleted by remove_members() only, which also ends their sessions.
GRANT SELECT, UPDATE (name, branding, rate_limit_per_minute, require_second_factor)
    ON workspaces TO call2me_auth_app;
GRANT SELECT, UPDATE (role, full_name, profile, role_set_by_user_id, role_set_by_key_id)
    ON memberships TO call2me_auth_app;

ALTER TABLE users ENABLE ROW LEVEL SECURITY;
CREATE POLICY users_select ON users FOR SELECT TO call2me_auth_app
    USING (id = (SELECT current_user_id()) OR EXISTS (
        SELECT FROM memberships m
        WHERE m.workspace_id = (SELECT current_workspace_id()) AND m.user_id = users.id));
CREATE POLICY users_insert ON users FOR INSERT TO call2me_auth_app
    WITH CHECK (id = (SELECT current_user_id()));
CREATE POLICY users_update ON users FOR UPDATE TO call2me_auth_app
    USING (id = (SELECT current_user_id()));

ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY;
CREATE POLICY workspaces_select ON workspaces FOR SELECT TO call2me_auth_app
    USING (id = (SELECT current_workspace_id()) OR EXISTS (
        SELECT FROM memberships m
        WHERE m.workspace_id = workspaces.id AND m.user_id = (SELECT current_user_id())));
CREATE POLICY workspaces_update ON workspaces FOR UPDATE TO call2me_auth_app
    USING (id = (SELECT current_workspace_id()));

ALTER TABLE memberships ENABLE ROW LEVEL SECURITY;
CREATE POLICY memberships_select ON memberships FOR SELECT TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()) OR user_id = (SELECT current_user_id()));
CREATE POLICY memberships_update ON memberships FOR UPDATE TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()));

------------------------------------------------------------------------------------------------
-- Functions

-- Returns the account with an address, for sign-in.
--
-- The function is in PL/pgSQL, which caches its plan for each connection. An SQL function is
-- planned at each call, which took ten times as long as the query. A generic plan is used from the
-- first call on: by default PostgreSQL makes five custom plans first, at half a millisecond each.
CREATE FUNCTION find_account_by_email(p_normalized_email text)
    RETURNS TABLE (user_id uuid, email text, full_name text, password_hash text,
                   last_workspace_id uuid)
    LANGUAGE plpgsql STABLE ROWS 1 SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        RETURN QUERY
            SELECT u.id, u.email, u.full_name, u.password_hash, u.last_workspace_id
            FROM users u WHERE u.normalized_email = p_normalized_email;
    END
    $$;

-- Returns true if this is the password hash of the transaction's user, and locks it until the
-- transaction ends.
CREATE FUNCTION lock_password_hash(p_hash text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        PERFORM FROM users WHERE id = current_user_id() AND password_hash = p_hash
        FOR NO KEY UPDATE;
        RETURN FOUND;
    END
    $$;

-- Replaces the password hash of the transaction's user. Returns false if the hash is no longer
-- `p_old_hash`: a sign-in that renews the hash of an old password must not undo a password change.
CREATE FUNCTION replace_password_hash(p_old_hash text, p_new_hash text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        UPDATE users SET password_hash = p_new_hash
        WHERE id = current_user_id() AND password_hash = p_old_hash;
        RETURN FOUND;
    END
    $$;

-- Creates the transaction's workspace, with the transaction's user as its first owner. A member is
-- visible to the whole workspace, so the context must prove the user too, and not the workspace
-- alone.
CREATE FUNCTION create_workspace(p_id uuid, p_name text, p_created_at timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        IF p_id IS DISTINCT FROM current_workspace_id() OR p_id IS NULL
           OR current_user_id() IS NULL
        THEN
            RAISE EXCEPTION 'a workspace must be that of the transaction, which must have a user'
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        INSERT INTO workspaces (id, name, created_at) VALUES (p_id, p_name, p_created_at);
        INSERT INTO memberships (workspace_id, user_id, role, joined_at)
        VALUES (p_id, current_user_id(), 'owner', p_created_at);
    END
    $$;

-- Marks the address of the transaction's user as verified, by a decision of a node: the user has
-- presented a mailed token. Returns false if it was verified before.
CREATE FUNCTION set_email_verified(p_verified_at bigint, p_key_id bytea, p_mac bytea)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM require_signed_decision(
            'email_verified_at', uuid_send(current_user_id()) || int8send(p_verified_at), p_key_id,
            p_mac);
        UPDATE users SET email_verified_at = timestamp_of_micros(p_verified_at)
        WHERE id = current_user_id() AND email_verified_at IS NULL;
        RETURN FOUND;
    END
    $$;

-- Stores until when the account of the transaction's user can be reclaimed, by a decision of a
-- node. NULL ends it.
CREATE FUNCTION set_reclaimable_until(p_until bigint, p_key_id bytea, p_mac bytea) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM require_signed_decision(
            'reclaimable_until', uuid_send(current_user_id()) || int8send(coalesce(p_until, 0)),
            p_key_id, p_mac);
        UPDATE users SET reclaimable_until = timestamp_of_micros(p_until)
        WHERE id = current_user_id();
    END
    $$;

-- Locks users until the transaction ends, in the order of their ids: the transaction's user, and
-- users that are members of a workspace of this user.
CREATE FUNCTION lock_fellow_members(p_user_ids uuid[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM FROM users u
        WHERE u.id = ANY (p_user_ids)
          AND (u.id = current_user_id() OR EXISTS (
              SELECT FROM memberships own JOIN memberships m ON m.workspace_id = own.workspace_id
              WHERE own.user_id = current_user_id() AND m.user_id = u.id))
        ORDER BY u.id FOR UPDATE;
    END
    $$;

-- Removes members of the transaction's workspace and ends their sessions there. Returns the
-- sessions that it ended. The administrator that removes a member has no right to the user's other
-- rows, so no transaction needs the context of that user. If this was the workspace of the last
-- sign-in, the next sign-in uses the oldest remaining membership.
CREATE FUNCTION remove_members(p_workspace_id uuid, p_user_ids uuid[], p_now timestamptz,
                               p_reason text)
    RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        removed uuid[];
    BEGIN
        -- Lock order everywhere: membership, user, session.
        WITH deleted AS (
            DELETE FROM memberships
            WHERE workspace_id = p_workspace_id AND workspace_id = current_workspace_id()
              AND user_id = ANY (p_user_ids)
            RETURNING user_id
        )
        SELECT array_agg(user_id) INTO removed FROM deleted;
        PERFORM FROM users WHERE id = ANY (removed) ORDER BY id FOR UPDATE;
        UPDATE users u SET last_workspace_id =
            (SELECT m.workspace_id FROM memberships m WHERE m.user_id = u.id
             ORDER BY m.joined_at, m.workspace_id LIMIT 1)
        WHERE u.id = ANY (removed) AND u.last_workspace_id = p_workspace_id;
        RETURN QUERY
            UPDATE sessions SET ended_at = p_now, end_reason = p_reason
            WHERE user_id = ANY (removed) AND workspace_id = p_workspace_id AND ended_at IS NULL
            RETURNING id;
    END
    $$;

-- Deletes the transaction's user and all data that belongs to this user alone. API keys that the
-- user created remain.
CREATE FUNCTION delete_current_user() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        DELETE FROM users WHERE id = current_user_id();
        RETURN FOUND;
    END
    $$;

-- Deletes the transaction's workspace and all its data except the audit log, which remains for its
-- retention period, and the documents, which prune_documents() deletes.
CREATE FUNCTION delete_current_workspace() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        UPDATE users SET last_workspace_id = NULL WHERE last_workspace_id = (SELECT current_workspace_id())
            AND id IN (SELECT user_id FROM memberships
                       WHERE workspace_id = (SELECT current_workspace_id()));
        DELETE FROM workspaces WHERE id = current_workspace_id();
        RETURN FOUND;
    END
    $$;

REVOKE ALL ON FUNCTION find_account_by_email, lock_password_hash, replace_password_hash,
    create_workspace, set_email_verified, set_reclaimable_until, lock_fellow_members,
    remove_members, delete_current_user, delete_current_workspace FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_account_by_email, lock_password_hash, replace_password_hash,
    create_workspace, set_email_verified, set_reclaimable_until, lock_fellow_members,
    remove_members, delete_current_user, delete_current_workspace TO call2me_auth_app;
