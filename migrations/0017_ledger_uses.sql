-- What keys did stands in the ledger as columns. As JSON each request of another key cost the service more than
-- the rest of what it tells PostgreSQL of that request.

-- A node of the version before would write what nobody reads.
DO $$
BEGIN
    IF EXISTS (SELECT FROM nodes WHERE lease_until > clock_timestamp()) THEN
        RAISE EXCEPTION 'nodes of an older version are running: stop them first (one that was killed counts until its lease is over, some seconds)';
    END IF;
END
$$;

-- What waits is counted now.
SELECT count_uses(array_agg(id)) FROM ledger WHERE json_array_length(uses) > 0;

DROP FUNCTION append_audit_events;
DROP FUNCTION count_uses;
ALTER TABLE ledger DROP uses;

-- Each use is that of a key in one minute by one program from one address, on routes of one group and scope,
-- answered in one way.
ALTER TABLE ledger
    ADD use_key_ids uuid[] NOT NULL DEFAULT '{}',
    -- The first word of the path, such as `agents`.
    ADD use_route_groups text[] NOT NULL DEFAULT '{}',
    -- What the route asks of the key.
    ADD use_scopes text[] NOT NULL DEFAULT '{}',
    -- The first digit of the answer's status.
    ADD use_status_classes smallint[] NOT NULL DEFAULT '{}',
    ADD use_ips inet[] NOT NULL DEFAULT '{}',
    -- Empty: it sent none.
    ADD use_user_agents text[] NOT NULL DEFAULT '{}',
    -- Of the last of these requests.
    ADD use_methods text[] NOT NULL DEFAULT '{}',
    ADD use_paths text[] NOT NULL DEFAULT '{}',
    -- The ids of the first and the last event, which say when.
    ADD use_firsts uuid[] NOT NULL DEFAULT '{}',
    ADD use_lasts uuid[] NOT NULL DEFAULT '{}',
    ADD use_requests bigint[] NOT NULL DEFAULT '{}',
    -- All of them have as many.
    ADD CHECK (cardinality(use_key_ids) = ALL (ARRAY[
        cardinality(use_route_groups), cardinality(use_scopes), cardinality(use_status_classes),
        cardinality(use_ips), cardinality(use_user_agents), cardinality(use_methods), cardinality(use_paths),
        cardinality(use_firsts), cardinality(use_lasts), cardinality(use_requests)]));

-- Adds up what these entries say of keys.
CREATE FUNCTION count_uses(entries bigint[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
    DECLARE
        grown uuid[];
    BEGIN
        WITH uses AS MATERIALIZED (
            -- A key's workspace is what its own row says.
            SELECT u.*, k.workspace_id, uuid_moment(u.first) AS first_used_at,
                   uuid_moment(u.last) AS last_used_at
            FROM ledger l
            CROSS JOIN unnest(
                l.use_key_ids, l.use_route_groups, l.use_scopes, l.use_status_classes, l.use_ips,
                l.use_user_agents, l.use_methods, l.use_paths, l.use_firsts, l.use_lasts, l.use_requests
            ) AS u (key_id, route_group, scope, status_class, ip, user_agent, method, path, first, last, requests)
            JOIN api_keys k ON k.id = u.key_id
            WHERE l.id = ANY (entries)
        ), activity AS (
            INSERT INTO api_key_activity AS known
                (key_id, workspace_id, first_used_at, last_used_at, last_used_ip, total_requests)
            SELECT key_id, workspace_id, min(first_used_at), max(last_used_at),
                   (array_agg(ip ORDER BY last DESC))[1], sum(requests)
            FROM uses GROUP BY key_id, workspace_id
            ON CONFLICT (key_id) DO UPDATE SET
                first_used_at = least(known.first_used_at, excluded.first_used_at),
                last_used_ip = CASE WHEN excluded.last_used_at >= known.last_used_at
                                    THEN excluded.last_used_ip ELSE known.last_used_ip END,
                last_used_at = greatest(known.last_used_at, excluded.last_used_at),
                total_requests = known.total_requests + excluded.total_requests
        ), hours AS (
            INSERT INTO key_usage_hours AS known
            SELECT key_id, workspace_id, date_trunc('hour', first_used_at, 'UTC'), route_group, scope,
                   status_class, sum(requests)
            FROM uses GROUP BY 1, 2, 3, 4, 5, 6
            ON CONFLICT (key_id, hour, route_group, scope, status_class)
                DO UPDATE SET requests = known.requests + excluded.requests
        ), minutes AS (
            INSERT INTO key_usage_minutes AS known
            SELECT key_id, workspace_id, date_trunc('minute', first_used_at, 'UTC'), sum(requests)
            FROM uses GROUP BY 1, 2, 3
            ON CONFLICT (key_id, minute) DO UPDATE SET requests = known.requests + excluded.requests
        ), clients AS (
            INSERT INTO key_usage_clients AS known
            SELECT key_id, workspace_id, ip, user_agent, min(first_used_at), max(last_used_at),
                   (array_agg(method ORDER BY last DESC))[1], (array_agg(path ORDER BY last DESC))[1],
                   sum(requests)
            FROM uses GROUP BY 1, 2, 3, 4
            ON CONFLICT (key_id, ip, user_agent) DO UPDATE SET
                first_used_at = least(known.first_used_at, excluded.first_used_at),
                last_used_at = greatest(known.last_used_at, excluded.last_used_at),
                last_method = CASE WHEN excluded.last_used_at >= known.last_used_at
                                   THEN excluded.last_method ELSE known.last_method END,
                last_path = CASE WHEN excluded.last_used_at >= known.last_used_at
                                 THEN excluded.last_path ELSE known.last_path END,
                requests = known.requests + excluded.requests
            -- An inserted row has never been updated.
            RETURNING known.key_id, xmax = 0 AS is_new
        )
        -- A few keys at a time: those that go on growing come again.
        SELECT array_agg(key_id) INTO grown
        FROM (SELECT DISTINCT key_id FROM clients WHERE is_new LIMIT 20) AS few;
        DELETE FROM key_usage_clients c USING (
            SELECT key_id, ip, user_agent,
                   row_number() OVER (PARTITION BY key_id ORDER BY last_used_at DESC) AS place
            FROM key_usage_clients WHERE key_id = ANY (grown)
        ) known
        WHERE known.place > 1000 AND c.key_id = known.key_id AND c.ip = known.ip
          AND c.user_agent = known.user_agent;
    END
    $$;

-- Writes a batch of events of any workspaces, and its entry in the ledger. `again`: it may have been
-- written before, all of it, and is then left alone; otherwise it certainly has not.
CREATE FUNCTION append_audit_events(
    ids uuid[], workspace_ids uuid[], actions text[],
    actor_types text[], actor_ids uuid[], actor_names text[],
    target_types text[], target_ids uuid[], target_names text[],
    request_ids uuid[], methods text[], paths text[], statuses smallint[],
    ips inet[], user_agents text[], latencies bigint[], metadatas jsonb[],
    digests bytea, since timestamptz,
    use_key_ids uuid[], use_route_groups text[], use_scopes text[], use_status_classes smallint[],
    use_ips inet[], use_user_agents text[], use_methods text[], use_paths text[], use_firsts uuid[],
    use_lasts uuid[], use_requests bigint[], again boolean
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    -- Left to itself PostgreSQL plans for each batch anew, which costs as much as writing thirty events.
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        IF again AND (cardinality(ids) = 0 OR EXISTS (
            SELECT FROM audit_events e WHERE e.workspace_id = workspace_ids[1] AND e.id = ids[1])) THEN
            RETURN;
        END IF;
        INSERT INTO audit_events (
            id, workspace_id, action, actor_type, actor_id, actor_name, target_type, target_id,
            target_name, request_id, method, path, status, ip, user_agent, latency_us, metadata)
        SELECT * FROM unnest(
            ids, workspace_ids, actions, actor_types, actor_ids, actor_names, target_types,
            target_ids, target_names, request_ids, methods, paths, statuses, ips, user_agents,
            latencies, metadatas);
        INSERT INTO ledger (
            since, workspace_ids, event_ids, digests, use_key_ids, use_route_groups, use_scopes,
            use_status_classes, use_ips, use_user_agents, use_methods, use_paths, use_firsts, use_lasts,
            use_requests)
        VALUES (
            since, workspace_ids, ids, digests, use_key_ids, use_route_groups, use_scopes,
            use_status_classes, use_ips, use_user_agents, use_methods, use_paths, use_firsts, use_lasts,
            use_requests);
    END
    $$;

-- Until when every use of a key is counted that other nodes have seen (NULL: until now), and when last there may
-- have been uses that nobody counted: of nodes that left without a farewell, or while one was cut off.
CREATE OR REPLACE FUNCTION uses_known(own uuid) RETURNS TABLE (until timestamptz, doubtful_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT least(
                   (SELECT min(written_until) FROM nodes
                    WHERE id <> own AND lease_until > clock_timestamp()),
                   (SELECT min(since) FROM ledger WHERE cardinality(use_key_ids) > 0)),
               greatest(
                   (SELECT max(lease_until) FROM nodes WHERE lease_until <= clock_timestamp()),
                   (SELECT max(interrupted_at) FROM nodes))
    $$;

REVOKE ALL ON FUNCTION append_audit_events, count_uses FROM PUBLIC;
GRANT EXECUTE ON FUNCTION append_audit_events TO call2me_auth_app;
