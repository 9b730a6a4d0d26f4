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
-- For the deletion of a workspace with many keys: each is looked up here.
CREATE INDEX api_keys_rotated_from_idx ON api_keys (rotated_from) WHERE rotated_from IS NOT NULL;
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

------------------------------------------------------------------------------------------------
-- Access that was given to others

CREATE SEQUENCE access_changes;

-- Who gave access to members and keys: the credentials that invited a member or set its role, that
-- created a key, and that enabled a key or allowed it further networks. The columns of
-- `memberships` and `api_keys` name the last ones only, so a second change would hide the first.
-- Triggers write the rows. The role has no rights on the table. `src/store/given_access.rs` follows
-- them.
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
    -- For the limit of a day.
    created_at timestamptz NOT NULL DEFAULT database_time(),
    CHECK (num_nonnulls(member_id, key_id) = 1),
    CHECK (num_nonnulls(by_user_id, by_key_id) > 0),
    UNIQUE NULLS NOT DISTINCT (workspace_id, by_key_id, by_user_id, member_id, key_id, is_creation)
);
CREATE INDEX given_access_by_user_id_idx ON given_access (workspace_id, by_user_id);
CREATE INDEX given_access_key_id_idx ON given_access (key_id) WHERE key_id IS NOT NULL;
CREATE INDEX given_access_created_at_idx ON given_access (workspace_id, created_at)
    WHERE by_key_id IS NOT NULL;

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

-- Trigger function: a revoked key that gave nothing leads nowhere, so nothing needs to know who
-- gave it access. A workspace has few other keys, but any number of these. A revoked key gives
-- nothing later.
CREATE FUNCTION forget_access_of_revoked_key() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        DELETE FROM given_access
        WHERE key_id = NEW.id
          AND NOT EXISTS (SELECT FROM given_access g
                          WHERE g.workspace_id = NEW.workspace_id AND g.by_key_id = NEW.id)
          AND NOT EXISTS (SELECT FROM oauth_clients WHERE creator_key_id = NEW.id)
          AND NOT EXISTS (SELECT FROM oauth_client_secrets WHERE creator_key_id = NEW.id)
          AND NOT EXISTS (SELECT FROM oauth_added_redirect_uris WHERE creator_key_id = NEW.id)
          AND NOT EXISTS (SELECT FROM invitations
                          WHERE inviter_key_id = NEW.id AND closed_at IS NULL);
        RETURN NULL;
    END
    $$;
CREATE TRIGGER api_keys_forget_access AFTER UPDATE OF revoked_at ON api_keys FOR EACH ROW
    WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL)
    EXECUTE FUNCTION forget_access_of_revoked_key();

-- Returns the access that was given in the transaction's workspace: keys that were created, other
-- access, or both if that is NULL. Up to `p_limit` rows, or all.
CREATE FUNCTION list_given_access(p_is_creation boolean, p_limit bigint)
    RETURNS TABLE (given_to uuid, by_user_id uuid, by_key_id uuid, is_creation boolean,
                   first_change bigint, last_change bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT coalesce(g.member_id, g.key_id), g.by_user_id, g.by_key_id, g.is_creation,
               g.first_change, g.last_change
        FROM given_access g
        WHERE g.workspace_id = (SELECT current_workspace_id())
          AND (p_is_creation IS NULL OR g.is_creation = p_is_creation)
        LIMIT p_limit
    $$;

-- Counts the access that keys of the transaction's workspace gave since a time, up to `p_limit`.
CREATE FUNCTION count_access_given_by_keys(p_since timestamptz, p_limit bigint) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT count(*) FROM (
            SELECT FROM given_access
            WHERE workspace_id = (SELECT current_workspace_id()) AND by_key_id IS NOT NULL
              AND created_at > p_since
            LIMIT p_limit) AS given
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

REVOKE ALL ON FUNCTION find_api_keys, find_api_key_workspace, record_given_access,
    forget_access_of_revoked_key, list_given_access, count_access_given_by_keys, insert_api_key
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_api_keys, find_api_key_workspace, list_given_access,
    count_access_given_by_keys, insert_api_key TO call2me_auth_app;
