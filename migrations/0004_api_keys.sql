-- API keys. The table holds a digest of each key. Keys are disabled or revoked, not deleted.

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    name text NOT NULL,
    description text,
    scope text NOT NULL CHECK (scope IN ('read-only', 'write', 'admin')),
    -- SHA-256 of the whole key. A key has 178 random bits, so it needs no slow hash.
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    -- The first and last four characters of the random part, for display.
    display_start text NOT NULL,
    display_end text NOT NULL,
    allowed_ips cidr[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    -- The creator's public id (`user_…`, `key_…`). NULL: created by the operator.
    created_by text,
    -- The user that `/v1/users/me` returns to the key.
    creator_user_id uuid REFERENCES users ON DELETE SET NULL,
    -- The API key that created this key, also as the successor of another key.
    creator_key_id uuid REFERENCES api_keys,
    -- A disabled key is rejected like a revoked one, and can be enabled again.
    disabled_at timestamptz,
    revoked_at timestamptz,
    -- NULL: revoked by its holder or by the operator. The audit log says which.
    revoked_by text,
    -- Requests per minute. NULL: the limit of the workspace, which is the maximum.
    rate_limit_per_minute integer CHECK (rate_limit_per_minute > 0),
    rotated_from uuid REFERENCES api_keys,
    -- The credentials that last enabled the key, or allowed it further networks. The key has no
    -- foreign key: one of another workspace would keep that from being deleted.
    widened_by_user_id uuid REFERENCES users ON DELETE SET NULL,
    widened_by_key_id uuid,
    CONSTRAINT api_keys_digest_key UNIQUE (digest)
);
CREATE INDEX api_keys_workspace_id_idx ON api_keys (workspace_id, id);
-- For the limit on keys: a workspace may have many revoked ones.
CREATE INDEX api_keys_not_revoked_idx ON api_keys (workspace_id) WHERE revoked_at IS NULL;
CREATE INDEX api_keys_creator_key_id_idx ON api_keys (creator_key_id)
    WHERE creator_key_id IS NOT NULL;
CREATE INDEX api_keys_widened_by_user_id_idx ON api_keys (widened_by_user_id)
    WHERE widened_by_user_id IS NOT NULL;
-- A key has at most one active successor.
CREATE UNIQUE INDEX api_keys_active_successor_key ON api_keys (rotated_from)
    WHERE revoked_at IS NULL;
CREATE TRIGGER api_keys_reject_reactivation BEFORE UPDATE ON api_keys FOR EACH ROW
    WHEN (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at)
    EXECUTE FUNCTION reject_reactivation('revoked API key');

-- Keys are inserted by insert_api_key() only.
GRANT SELECT,
    UPDATE (name, description, allowed_ips, disabled_at, revoked_at, revoked_by,
            rate_limit_per_minute, widened_by_user_id, widened_by_key_id)
    ON api_keys TO call2me_auth_app;
ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
CREATE POLICY api_keys_by_workspace ON api_keys TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()))
    WITH CHECK (workspace_id = (SELECT current_workspace_id()));

-- Returns keys by their digests, before the caller is authenticated.
CREATE FUNCTION find_api_keys(p_digests bytea[])
    RETURNS TABLE (digest bytea, id uuid, workspace_id uuid, name text, scope text,
                   allowed_ips cidr[], creator_user_id uuid, disabled_at timestamptz,
                   revoked_at timestamptz, rate_limit_per_minute integer,
                   workspace_rate_limit_per_minute integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT k.digest, k.id, k.workspace_id, k.name, k.scope, k.allowed_ips, k.creator_user_id,
               k.disabled_at, k.revoked_at, k.rate_limit_per_minute, w.rate_limit_per_minute
        FROM api_keys k JOIN workspaces w ON w.id = k.workspace_id
        WHERE k.digest = ANY (p_digests)
    $$;

-- Returns the workspace of a key, for the operator.
CREATE FUNCTION find_api_key_workspace(p_id uuid) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT workspace_id FROM api_keys WHERE id = p_id $$;

-- Returns the keys that a key created, directly or through keys that it created. Revoked keys are
-- included. It runs with the rights of its caller, so it sees one workspace.
CREATE FUNCTION list_key_descendants(p_key_id uuid) RETURNS SETOF uuid
    LANGUAGE sql STABLE
    AS $$
        WITH RECURSIVE descendants AS (
            SELECT id FROM api_keys WHERE creator_key_id = p_key_id
            UNION
            SELECT k.id FROM api_keys k JOIN descendants d ON k.creator_key_id = d.id
        )
        SELECT id FROM descendants
    $$;

-- Returns a key and its descendants. None for NULL.
CREATE FUNCTION list_key_and_descendants(p_key_id uuid) RETURNS SETOF uuid
    LANGUAGE sql STABLE
    AS $$
        SELECT p_key_id WHERE p_key_id IS NOT NULL
        UNION ALL SELECT list_key_descendants(p_key_id)
    $$;

------------------------------------------------------------------------------------------------
-- Access that was given to others

CREATE SEQUENCE access_changes;

-- Who gave access to members and keys: the credentials that invited a member or set its role, that
-- created a key, and that enabled a key or allowed it further networks. The columns of
-- `memberships` and `api_keys` name the last ones only, so a second change would hide the first.
-- Triggers write the rows. The role has no rights on the table.
CREATE TABLE given_access (
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    -- One of them: the member, or the key. A member that was removed may have given access, and may
    -- join again.
    member_id uuid,
    key_id uuid REFERENCES api_keys ON DELETE CASCADE,
    -- At least one of them: a user, directly or through a key, and that key. Without foreign keys:
    -- the access outlasts them.
    by_user_id uuid,
    by_key_id uuid,
    -- True if they created the key.
    is_creation boolean NOT NULL,
    -- The order of the changes. Their times would say nothing after the clock was set back.
    first_change bigint NOT NULL DEFAULT nextval('access_changes'),
    last_change bigint NOT NULL DEFAULT currval('access_changes'),
    CHECK (num_nonnulls(member_id, key_id) = 1),
    CHECK (num_nonnulls(by_user_id, by_key_id) > 0),
    UNIQUE NULLS NOT DISTINCT (workspace_id, by_key_id, by_user_id, member_id, key_id, is_creation)
);
CREATE INDEX given_access_by_user_id_idx ON given_access (workspace_id, by_user_id);
CREATE INDEX given_access_key_id_idx ON given_access (key_id) WHERE key_id IS NOT NULL;

-- Trigger function: records the credentials that a changed row names.
CREATE FUNCTION record_given_access() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        given given_access;
    BEGIN
        given.is_creation := TG_OP = 'INSERT' AND TG_TABLE_NAME = 'api_keys';
        IF TG_TABLE_NAME = 'memberships' THEN
            given.member_id := NEW.user_id;
            given.by_user_id := NEW.role_set_by_user_id;
            given.by_key_id := NEW.role_set_by_key_id;
        ELSIF given.is_creation THEN
            given.key_id := NEW.id;
            given.by_user_id := NEW.creator_user_id;
            given.by_key_id := NEW.creator_key_id;
        ELSE
            given.key_id := NEW.id;
            given.by_user_id := NEW.widened_by_user_id;
            given.by_key_id := NEW.widened_by_key_id;
        END IF;
        INSERT INTO given_access (workspace_id, member_id, key_id, by_user_id, by_key_id,
                                  is_creation)
        VALUES (NEW.workspace_id, given.member_id, given.key_id, given.by_user_id,
                given.by_key_id, given.is_creation)
        ON CONFLICT (workspace_id, by_key_id, by_user_id, member_id, key_id, is_creation)
            DO UPDATE SET last_change = excluded.last_change;
        RETURN NULL;
    END
    $$;
CREATE TRIGGER memberships_record_given_access
    AFTER INSERT OR UPDATE OF role_set_by_user_id, role_set_by_key_id ON memberships FOR EACH ROW
    WHEN (NEW.role_set_by_user_id IS NOT NULL OR NEW.role_set_by_key_id IS NOT NULL)
    EXECUTE FUNCTION record_given_access();
CREATE TRIGGER api_keys_record_creation
    AFTER INSERT ON api_keys FOR EACH ROW
    WHEN (NEW.creator_user_id IS NOT NULL OR NEW.creator_key_id IS NOT NULL)
    EXECUTE FUNCTION record_given_access();
CREATE TRIGGER api_keys_record_given_access
    AFTER UPDATE OF widened_by_user_id, widened_by_key_id ON api_keys FOR EACH ROW
    WHEN (NEW.widened_by_user_id IS NOT NULL OR NEW.widened_by_key_id IS NOT NULL)
    EXECUTE FUNCTION record_given_access();

-- Returns the members and the keys of the transaction's workspace that a key or a user gave access
-- to: directly, and through members and keys that got access in this way before they gave it. Of a
-- key, also the keys that these created. Of a user, those are too many: administrators create keys
-- for years.
--
-- This is the algorithm of Dijkstra, with changes in place of distances: each member and key is
-- visited once, with the earliest change that gave it access. A recursive query would visit it for
-- each such change, which keys that widen each other make very many.
CREATE FUNCTION list_given_access(p_key_id uuid, p_user_id uuid) RETURNS SETOF uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        workspace CONSTANT uuid := current_workspace_id();
        -- The members and keys that are known so far, with the change that gave each one access,
        -- and true if it was visited.
        ids uuid[] := ARRAY[coalesce(p_key_id, p_user_id)];
        changes bigint[] := ARRAY[0];
        visited boolean[] := ARRAY[false];
        giver uuid;
        since bigint;
    BEGIN
        IF num_nonnulls(p_key_id, p_user_id) <> 1 THEN
            RETURN;
        END IF;
        LOOP
            SELECT k.id, k.change INTO giver, since
            FROM unnest(ids, changes, visited) AS k(id, change, is_visited)
            WHERE NOT k.is_visited ORDER BY k.change LIMIT 1;
            EXIT WHEN NOT FOUND;
            SELECT array_agg(k.id), array_agg(k.change), array_agg(k.is_visited)
            INTO ids, changes, visited
            FROM (
                SELECT id, min(change) AS change, bool_or(is_visited) AS is_visited
                FROM (
                    SELECT id, change, is_visited OR id = giver
                    FROM unnest(ids, changes, visited) AS k(id, change, is_visited)
                    UNION ALL
                    SELECT coalesce(g.member_id, g.key_id), greatest(g.first_change, since), false
                    FROM given_access g
                    WHERE g.workspace_id = workspace AND g.last_change >= since
                      AND (g.by_key_id = giver OR g.by_user_id = giver)
                      AND (p_key_id IS NOT NULL OR NOT g.is_creation)
                ) AS found(id, change, is_visited)
                GROUP BY id
            ) AS k;
        END LOOP;
        RETURN QUERY SELECT k.id FROM unnest(ids) AS k(id)
                     WHERE k.id <> coalesce(p_key_id, p_user_id);
    END
    $$;

-- Inserts a key into the transaction's workspace. A key is a credential, so its workspace is
-- checked here too, and not by the policy alone. Its creator is the transaction's user, the creator
-- of the key that creates it, or NULL.
CREATE FUNCTION insert_api_key(p_id uuid, p_workspace_id uuid, p_name text, p_description text,
                               p_scope text, p_digest bytea, p_display_start text,
                               p_display_end text, p_allowed_ips inet[], p_created_at timestamptz,
                               p_created_by text, p_creator_user_id uuid, p_creator_key_id uuid,
                               p_rotated_from uuid, p_rate_limit_per_minute integer)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        IF p_workspace_id IS DISTINCT FROM current_workspace_id() OR p_workspace_id IS NULL THEN
            RAISE EXCEPTION 'an API key must be in the workspace of the transaction'
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        -- The foreign keys accept keys of another workspace.
        IF EXISTS (
            SELECT FROM api_keys WHERE id IN (p_rotated_from, p_creator_key_id)
                                   AND workspace_id <> p_workspace_id)
        THEN
            RAISE EXCEPTION 'an API key must be created and rotated in its own workspace'
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        IF p_creator_user_id IS NOT NULL AND p_creator_user_id IS DISTINCT FROM current_user_id()
           AND NOT EXISTS (
               SELECT FROM api_keys
               WHERE id = p_creator_key_id AND workspace_id = p_workspace_id
                 AND creator_user_id = p_creator_user_id)
        THEN
            RAISE EXCEPTION 'the creator of an API key must be the user of the transaction'
                USING ERRCODE = 'insufficient_privilege';
        END IF;
        INSERT INTO api_keys (id, workspace_id, name, description, scope, digest, display_start,
                              display_end, allowed_ips, created_at, created_by, creator_user_id,
                              creator_key_id, rotated_from, rate_limit_per_minute)
        VALUES (p_id, p_workspace_id, p_name, p_description, p_scope, p_digest, p_display_start,
                p_display_end, p_allowed_ips, p_created_at, p_created_by, p_creator_user_id,
                p_creator_key_id, p_rotated_from, p_rate_limit_per_minute);
    END
    $$;

REVOKE ALL ON FUNCTION find_api_keys, find_api_key_workspace, list_key_descendants,
    list_key_and_descendants, record_given_access, list_given_access, insert_api_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_api_keys, find_api_key_workspace, list_key_descendants,
    list_key_and_descendants, list_given_access, insert_api_key TO call2me_auth_app;
