-- What nodes believe of credentials, and how a change takes it from them. And a cheaper log.
--
-- Every change that could make a cached credential worth less is announced by a trigger, whoever
-- makes it: a row of `invalidations` under the next generation, in the transaction of the change. A
-- node reads the rows after its own generation, forgets what they name, and acknowledges. Whoever
-- revokes waits until every registered node has, or its lease has run out.

-- The newest generation. One row, which a change locks until it is committed: so generations become
-- visible in their order and without gaps, which those of a sequence do not.
CREATE TABLE invalidation_head (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    generation bigint NOT NULL
);
INSERT INTO invalidation_head (generation) VALUES (0);

CREATE TABLE invalidations (
    generation bigint PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What is not to be believed any more: a key, a session, the sessions of a person (in one
    -- workspace, where that is given too), or everything of a workspace.
    key_digest bytea,
    session_id uuid,
    user_id uuid,
    workspace_id uuid,
    CHECK (num_nonnulls(key_digest, session_id, user_id, workspace_id) > 0)
);
CREATE INDEX invalidations_at_idx ON invalidations (at);

-- The nodes that may have something cached. Unlogged would be forgotten in a crash that a lease
-- survives.
CREATE TABLE nodes (
    id uuid PRIMARY KEY,
    acknowledged bigint NOT NULL,
    -- By PostgreSQL's clock, counted from when the renewal arrived, which is after the node sent it:
    -- the node's own count, from the sending, ends first.
    lease_until timestamptz NOT NULL
);

CREATE FUNCTION invalidate(digest bytea, session uuid, person uuid, workspace uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        next bigint;
    BEGIN
        UPDATE invalidation_head SET generation = generation + 1 RETURNING generation INTO next;
        INSERT INTO invalidations (generation, key_digest, session_id, user_id, workspace_id)
        VALUES (next, digest, session, person, workspace);
        PERFORM pg_notify('call2me_invalidations', '');
    END
    $$;

CREATE FUNCTION announce() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        CASE TG_TABLE_NAME
            WHEN 'api_keys' THEN PERFORM invalidate(OLD.digest, NULL, NULL, NULL);
            WHEN 'sessions' THEN PERFORM invalidate(NULL, OLD.id, NULL, NULL);
            WHEN 'memberships' THEN
                PERFORM invalidate(NULL, NULL, coalesce(OLD.user_id, NEW.user_id),
                                   coalesce(OLD.workspace_id, NEW.workspace_id));
            WHEN 'users' THEN PERFORM invalidate(NULL, NULL, OLD.id, NULL);
            WHEN 'workspaces' THEN PERFORM invalidate(NULL, NULL, NULL, OLD.id);
        END CASE;
        RETURN NULL;
    END
    $$;

-- Deferred: the head is locked last of all and only for the commit, so that changes wait for each
-- other as little as can be and never in a circle.
CREATE CONSTRAINT TRIGGER api_keys_announce AFTER UPDATE ON api_keys
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((OLD.digest, OLD.name, OLD.scope, OLD.allowed_ips, OLD.creator_user_id, OLD.revoked_at, OLD.workspace_id)
          IS DISTINCT FROM (NEW.digest, NEW.name, NEW.scope, NEW.allowed_ips, NEW.creator_user_id, NEW.revoked_at, NEW.workspace_id))
    EXECUTE FUNCTION announce();
CREATE CONSTRAINT TRIGGER api_keys_announce_delete AFTER DELETE ON api_keys
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION announce();
CREATE CONSTRAINT TRIGGER sessions_announce AFTER UPDATE ON sessions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((OLD.user_id, OLD.workspace_id, OLD.expires_at, OLD.ended_at)
          IS DISTINCT FROM (NEW.user_id, NEW.workspace_id, NEW.expires_at, NEW.ended_at))
    EXECUTE FUNCTION announce();
CREATE CONSTRAINT TRIGGER sessions_announce_delete AFTER DELETE ON sessions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION announce();
-- Also who joins: a session that outlived its membership is known to have none.
CREATE CONSTRAINT TRIGGER memberships_announce AFTER INSERT OR UPDATE OR DELETE ON memberships
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION announce();
CREATE CONSTRAINT TRIGGER users_announce AFTER UPDATE ON users
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((OLD.email, OLD.full_name) IS DISTINCT FROM (NEW.email, NEW.full_name))
    EXECUTE FUNCTION announce();
CREATE CONSTRAINT TRIGGER users_announce_delete AFTER DELETE ON users
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION announce();
CREATE CONSTRAINT TRIGGER workspaces_announce AFTER UPDATE ON workspaces
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.rate_limit_per_minute IS DISTINCT FROM NEW.rate_limit_per_minute)
    EXECUTE FUNCTION announce();
CREATE CONSTRAINT TRIGGER workspaces_announce_delete AFTER DELETE ON workspaces
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION announce();

------------------------------------------------------------------------------------------------
-- What nodes do

-- A node takes part from the newest generation on, and must begin with nothing cached. What other
-- nodes left behind without a farewell goes, once nobody can wait for it any more.
CREATE FUNCTION register_node(node uuid, lease interval) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        head bigint;
    BEGIN
        DELETE FROM nodes WHERE lease_until < clock_timestamp() - interval '1 minute';
        SELECT generation INTO head FROM invalidation_head;
        INSERT INTO nodes (id, acknowledged, lease_until)
        VALUES (node, head, clock_timestamp() + lease)
        ON CONFLICT (id) DO UPDATE
            SET acknowledged = excluded.acknowledged, lease_until = excluded.lease_until;
        RETURN head;
    END
    $$;

-- False: the node is registered no longer.
CREATE FUNCTION renew_lease(node uuid, applied bigint, lease interval) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        UPDATE nodes SET acknowledged = applied, lease_until = clock_timestamp() + lease WHERE id = node;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        -- Also without anything new: it shows the node that its listener lives.
        PERFORM pg_notify('call2me_acknowledgements', '');
        RETURN true;
    END
    $$;

-- That a node has forgotten what it had to, up to a generation. Not flushed to disk: should a crash
-- take it back, the next renewal tells again.
CREATE FUNCTION acknowledge(node uuid, applied bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM set_config('synchronous_commit', 'off', true);
        UPDATE nodes SET acknowledged = applied WHERE id = node;
        PERFORM pg_notify('call2me_acknowledgements', '');
    END
    $$;

CREATE FUNCTION unregister_node(node uuid) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM nodes WHERE id = node;
        SELECT pg_notify('call2me_acknowledgements', '');
    $$;

CREATE FUNCTION newest_generation() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT generation FROM invalidation_head $$;

-- What was announced after a generation and how many seconds ago, each with the newest generation of the same snapshot; of
-- nothing new, one row with that alone.
CREATE FUNCTION invalidations_since(applied bigint)
    RETURNS TABLE (head bigint, generation bigint, key_digest bytea, session_id uuid, user_id uuid,
                   workspace_id uuid, age double precision)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT h.generation, i.generation, i.key_digest, i.session_id, i.user_id, i.workspace_id,
               extract(epoch FROM clock_timestamp() - i.at)::double precision
        FROM invalidation_head h LEFT JOIN invalidations i ON i.generation > applied
    $$;

-- Whether every node that may still believe anything has acknowledged a generation. A lease counts
-- for a second longer, since clocks do not tick alike.
CREATE FUNCTION is_acknowledged(wanted bigint) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT NOT EXISTS (
            SELECT FROM nodes
            WHERE acknowledged < wanted AND lease_until + interval '1 second' > clock_timestamp())
    $$;

-- A node that was away for longer notices the gap, and forgets everything.
CREATE FUNCTION prune_invalidations() RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM invalidations WHERE at < clock_timestamp() - interval '10 minutes' $$;

------------------------------------------------------------------------------------------------
-- Look-ups before a caller is known, many at a time

DROP FUNCTION find_api_key(bytea);
CREATE FUNCTION find_api_keys(digests bytea[])
    RETURNS TABLE (digest bytea, id uuid, workspace_id uuid, name text, scope text,
                   allowed_ips cidr[], creator_user_id uuid, revoked_at timestamptz,
                   rate_limit_per_minute integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT k.digest, k.id, k.workspace_id, k.name, k.scope, k.allowed_ips, k.creator_user_id,
               k.revoked_at, w.rate_limit_per_minute
        FROM api_keys k JOIN workspaces w ON w.id = k.workspace_id
        WHERE k.digest = ANY (digests)
    $$;

DROP FUNCTION find_session(uuid);
CREATE FUNCTION find_sessions(session_ids uuid[])
    RETURNS TABLE (id uuid, user_id uuid, workspace_id uuid, email text, full_name text, role text,
                   expires_at timestamptz, ended_at timestamptz, rate_limit_per_minute integer)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT s.id, s.user_id, s.workspace_id, u.email, u.full_name, m.role, s.expires_at,
               s.ended_at, w.rate_limit_per_minute
        FROM sessions s
        JOIN users u ON u.id = s.user_id
        JOIN workspaces w ON w.id = s.workspace_id
        LEFT JOIN memberships m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
        WHERE s.id = ANY (session_ids)
    $$;

------------------------------------------------------------------------------------------------
-- The log

-- For filters by what happened: of changes alone, so it costs nothing for calls.
CREATE INDEX audit_events_action_idx ON audit_events (workspace_id, action, id)
    WHERE action <> 'request';

-- As before, without joining the events to themselves: that cost more than writing them, once a batch
-- held events of many keys.
CREATE OR REPLACE FUNCTION append_audit_events(
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
            SELECT actor_id AS key_id, workspace_id, min(id::text)::uuid AS first_id,
                   max(id::text)::uuid AS last_id, (array_agg(ip ORDER BY id DESC))[1] AS last_ip,
                   count(*) AS requests
            FROM written
            WHERE actor_type = 'api_key' AND action = 'request'
            GROUP BY actor_id, workspace_id
        )
        INSERT INTO api_key_activity AS activity
            (key_id, workspace_id, first_used_at, last_used_at, last_used_ip, total_requests)
        SELECT key_id, workspace_id, uuid_moment(first_id), uuid_moment(last_id), last_ip, requests
        FROM used
        WHERE EXISTS (SELECT FROM api_keys WHERE api_keys.id = used.key_id)
        -- One order for all nodes, or two batches could wait for each other.
        ORDER BY key_id
        ON CONFLICT (key_id) DO UPDATE SET
            first_used_at = least(activity.first_used_at, excluded.first_used_at),
            last_used_ip = CASE WHEN excluded.last_used_at >= activity.last_used_at
                                THEN excluded.last_used_ip ELSE activity.last_used_ip END,
            last_used_at = greatest(activity.last_used_at, excluded.last_used_at),
            total_requests = activity.total_requests + excluded.total_requests;
    END
    $$;

REVOKE ALL ON FUNCTION invalidate, announce, register_node, renew_lease, acknowledge,
    unregister_node, newest_generation, invalidations_since, is_acknowledged, prune_invalidations,
    find_api_keys, find_sessions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION register_node, renew_lease, acknowledge, unregister_node,
    newest_generation, invalidations_since, is_acknowledged, prune_invalidations, find_api_keys,
    find_sessions TO call2me_auth_app;
