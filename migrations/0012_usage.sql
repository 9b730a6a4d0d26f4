-- Usage of API keys. The counts are kept for longer than the audit log.
--
-- The sealer adds up the usage in outbox entries, in the transaction that deletes the entries, so
-- each request is counted once.

-- The total usage of a key. It is not part of `api_keys`: each batch of events updates it, and must
-- not contend with a revocation for the key's row.
CREATE TABLE api_key_activity (
    key_id uuid PRIMARY KEY REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    -- NULL: every request was rejected before it was a use of the key.
    first_used_at timestamptz,
    last_used_at timestamptz,
    last_used_ip inet,
    total_requests bigint NOT NULL,
    -- The events of the last request that was served, and of the last one that failed or was
    -- rejected. The ids are UUIDv7, so within an epoch of the clock they sort by time.
    last_success_id uuid,
    last_failure_id uuid,
    -- The epoch of the clock in which each of these was counted.
    last_used_epoch bigint NOT NULL,
    last_success_epoch bigint NOT NULL,
    last_failure_epoch bigint NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE key_usage_hours (
    key_id uuid NOT NULL REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    hour timestamptz NOT NULL,
    -- The first segment of the path, such as `agents`.
    route_group text NOT NULL,
    -- The scope that the route requires.
    scope text NOT NULL,
    -- The first digit of the response's status.
    status_class smallint NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (key_id, hour, route_group, scope, status_class)
) WITH (fillfactor = 70);
CREATE INDEX key_usage_hours_hour_idx ON key_usage_hours (hour);

-- Kept for the last hours only.
CREATE TABLE key_usage_minutes (
    key_id uuid NOT NULL REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    minute timestamptz NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (key_id, minute)
) WITH (fillfactor = 70);
CREATE INDEX key_usage_minutes_minute_idx ON key_usage_minutes (minute);

-- The addresses and user agents that used a key last, at most a thousand for each key.
CREATE TABLE key_usage_clients (
    key_id uuid NOT NULL REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    ip inet NOT NULL,
    -- Empty if the client sent none.
    user_agent text NOT NULL,
    first_used_at timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL,
    last_method text NOT NULL,
    last_path text NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (key_id, ip, user_agent)
) WITH (fillfactor = 70);

-- The evidence of rotation reports that called a key safe to revoke: a period in which the key was
-- certainly not used. Later reports on any node read it, so the verdict changes back only after a
-- use of the key.
CREATE TABLE quiet_confirmations (
    key_id uuid NOT NULL REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    -- The successor that had served requests at that time. NULL if the key had no active successor.
    successor_id uuid,
    -- The total requests of the key at that time. The evidence is void once there are more, also if
    -- the clock has changed since.
    total_requests bigint NOT NULL,
    quiet_since timestamptz NOT NULL,
    quiet_until timestamptz NOT NULL,
    -- With the workspace: a row of another workspace for the same key must not conflict.
    PRIMARY KEY (workspace_id, key_id),
    CHECK (quiet_since <= quiet_until)
);

------------------------------------------------------------------------------------------------
-- Rights of the role

GRANT SELECT ON api_key_activity, key_usage_hours, key_usage_minutes, key_usage_clients
    TO call2me_auth_app;
ALTER TABLE api_key_activity ENABLE ROW LEVEL SECURITY;
CREATE POLICY api_key_activity_by_workspace ON api_key_activity TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()))
    WITH CHECK (workspace_id = (SELECT current_workspace_id()));
ALTER TABLE key_usage_hours ENABLE ROW LEVEL SECURITY;
CREATE POLICY key_usage_hours_by_workspace ON key_usage_hours TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()));
ALTER TABLE key_usage_minutes ENABLE ROW LEVEL SECURITY;
CREATE POLICY key_usage_minutes_by_workspace ON key_usage_minutes TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()));
ALTER TABLE key_usage_clients ENABLE ROW LEVEL SECURITY;
CREATE POLICY key_usage_clients_by_workspace ON key_usage_clients TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()));

GRANT SELECT, INSERT, UPDATE ON quiet_confirmations TO call2me_auth_app;
ALTER TABLE quiet_confirmations ENABLE ROW LEVEL SECURITY;
CREATE POLICY quiet_confirmations_by_workspace ON quiet_confirmations TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()))
    WITH CHECK (workspace_id = (SELECT current_workspace_id()));

------------------------------------------------------------------------------------------------
-- Functions

-- Adds the usage in outbox entries to the counts, in this epoch of the clock. Only
-- `append_chain_segments` calls it, as the owner of the tables. `p_now` is NULL if the caller does
-- not follow the clock. Otherwise, an event that is not between the start of the epoch and that
-- time is of a node that had not noticed the epoch. Its true time is not known: a success counts as
-- one at the start, all others as one at this time.
CREATE FUNCTION add_key_usage(p_entry_ids bigint[], p_clock clock_epoch, p_now timestamptz)
    RETURNS void
    LANGUAGE plpgsql
    AS $$
    DECLARE
        grown_keys uuid[];
        start_id CONSTANT uuid :=
            CASE WHEN p_now IS NOT NULL THEN uuidv7_lower_bound(p_clock.started_at) END;
        now_id CONSTANT uuid := uuidv7_lower_bound(p_now);
        -- Nodes agree on the time within a second.
        latest_id CONSTANT uuid := uuidv7_lower_bound(p_now + interval '1 second');
    BEGIN
        WITH attempts AS MATERIALIZED (
            -- The workspace of a key is that of its row. `least` and `greatest` ignore NULL.
            SELECT u.*, k.workspace_id, least(uuidv7_timestamp(u.first), p_now) AS first_used_at,
                   CASE WHEN u.last NOT BETWEEN start_id AND latest_id THEN p_now
                        ELSE uuidv7_timestamp(u.last) END AS last_used_at,
                   CASE WHEN u.last NOT BETWEEN start_id AND latest_id THEN start_id
                        ELSE u.last END AS success_id,
                   CASE WHEN u.last NOT BETWEEN start_id AND latest_id THEN now_id
                        ELSE u.last END AS failure_id
            FROM audit_outbox entry
            CROSS JOIN unnest(
                entry.usage_key_ids, entry.usage_route_groups, entry.usage_scopes,
                entry.usage_status_classes, entry.usage_outcomes, entry.usage_ips,
                entry.usage_user_agents, entry.usage_last_methods, entry.usage_last_paths,
                entry.usage_first_event_ids, entry.usage_last_event_ids, entry.usage_requests
            ) AS u (key_id, route_group, scope, status_class, outcome, ip, user_agent, method, path,
                    first, last, requests)
            JOIN api_keys k ON k.id = u.key_id
            WHERE entry.id = ANY (p_entry_ids)
        ), usage AS (
            SELECT * FROM attempts WHERE outcome <> 'rejected'
        ), activity AS (
            INSERT INTO api_key_activity AS stored
                (key_id, workspace_id, first_used_at, last_used_at, last_used_ip, total_requests,
                 last_success_id, last_failure_id, last_used_epoch, last_success_epoch,
                 last_failure_epoch)
            SELECT key_id, workspace_id,
                   min(first_used_at) FILTER (WHERE outcome <> 'rejected'),
                   max(last_used_at) FILTER (WHERE outcome <> 'rejected'),
                   (array_agg(ip ORDER BY last DESC) FILTER (WHERE outcome <> 'rejected'))[1],
                   coalesce(sum(requests) FILTER (WHERE outcome <> 'rejected'), 0),
                   (array_agg(success_id ORDER BY success_id DESC)
                       FILTER (WHERE outcome = 'served'))[1],
                   (array_agg(failure_id ORDER BY failure_id DESC)
                       FILTER (WHERE outcome IN ('failed', 'rejected')))[1],
                   p_clock.epoch, p_clock.epoch, p_clock.epoch
            FROM attempts GROUP BY key_id, workspace_id
            -- A value of this epoch replaces one of an earlier epoch, also if that is greater.
            ON CONFLICT (key_id) DO UPDATE SET
                first_used_at = least(stored.first_used_at, excluded.first_used_at),
                last_used_ip = CASE WHEN excluded.last_used_at < stored.last_used_at
                                         AND stored.last_used_epoch = p_clock.epoch
                                    THEN stored.last_used_ip
                                    ELSE coalesce(excluded.last_used_ip, stored.last_used_ip) END,
                last_used_at = CASE WHEN stored.last_used_epoch = p_clock.epoch
                                    THEN greatest(stored.last_used_at, excluded.last_used_at)
                                    ELSE coalesce(excluded.last_used_at, stored.last_used_at) END,
                last_used_epoch = CASE WHEN excluded.last_used_at IS NULL
                                       THEN stored.last_used_epoch ELSE p_clock.epoch END,
                total_requests = stored.total_requests + excluded.total_requests,
                last_success_id = CASE WHEN stored.last_success_epoch = p_clock.epoch
                    THEN greatest(stored.last_success_id, excluded.last_success_id)
                    ELSE coalesce(excluded.last_success_id, stored.last_success_id) END,
                last_success_epoch = CASE WHEN excluded.last_success_id IS NULL
                                          THEN stored.last_success_epoch ELSE p_clock.epoch END,
                last_failure_id = CASE WHEN stored.last_failure_epoch = p_clock.epoch
                    THEN greatest(stored.last_failure_id, excluded.last_failure_id)
                    ELSE coalesce(excluded.last_failure_id, stored.last_failure_id) END,
                last_failure_epoch = CASE WHEN excluded.last_failure_id IS NULL
                                          THEN stored.last_failure_epoch ELSE p_clock.epoch END
        ), hours AS (
            INSERT INTO key_usage_hours AS stored
            SELECT key_id, workspace_id, date_trunc('hour', first_used_at, 'UTC'), route_group,
                   scope, status_class, sum(requests)
            FROM usage GROUP BY 1, 2, 3, 4, 5, 6
            ON CONFLICT (key_id, hour, route_group, scope, status_class)
                DO UPDATE SET requests = stored.requests + excluded.requests
        ), minutes AS (
            INSERT INTO key_usage_minutes AS stored
            SELECT key_id, workspace_id, date_trunc('minute', first_used_at, 'UTC'), sum(requests)
            FROM usage GROUP BY 1, 2, 3
            ON CONFLICT (key_id, minute)
                DO UPDATE SET requests = stored.requests + excluded.requests
        ), clients AS (
            INSERT INTO key_usage_clients AS stored
            SELECT key_id, workspace_id, ip, user_agent, min(first_used_at), max(last_used_at),
                   (array_agg(method ORDER BY last DESC))[1],
                   (array_agg(path ORDER BY last DESC))[1], sum(requests)
            FROM usage GROUP BY 1, 2, 3, 4
            ON CONFLICT (key_id, ip, user_agent) DO UPDATE SET
                first_used_at = least(stored.first_used_at, excluded.first_used_at),
                last_used_at = greatest(stored.last_used_at, excluded.last_used_at),
                last_method = CASE WHEN excluded.last_used_at >= stored.last_used_at
                                   THEN excluded.last_method ELSE stored.last_method END,
                last_path = CASE WHEN excluded.last_used_at >= stored.last_used_at
                                 THEN excluded.last_path ELSE stored.last_path END,
                requests = stored.requests + excluded.requests
            -- xmax is 0 for a row that was inserted and not updated.
            RETURNING stored.key_id, xmax = 0 AS is_new
        )
        -- A few keys in each call: those that continue to grow appear again.
        SELECT array_agg(key_id) INTO grown_keys
        FROM (SELECT DISTINCT key_id FROM clients WHERE is_new LIMIT 20) AS sample;
        DELETE FROM key_usage_clients c USING (
            SELECT key_id, ip, user_agent,
                   row_number() OVER (PARTITION BY key_id ORDER BY last_used_at DESC) AS position
            FROM key_usage_clients WHERE key_id = ANY (grown_keys)
        ) stored
        WHERE stored.position > 1000 AND c.key_id = stored.key_id AND c.ip = stored.ip
          AND c.user_agent = stored.user_agent;
    END
    $$;

-- Returns the time up to which every use of a key that other nodes served is counted (NULL: no
-- other node is registered and the outbox is empty), the last time at which uses may have been lost
-- (a node stopped without deregistering, or was disconnected), and the epoch of the clock. A node
-- that has not noticed the present epoch yet may have uncounted uses since its start, and so may an
-- entry with a time in the future.
CREATE FUNCTION usage_watermark(p_own_node_id uuid, p_clock_epoch bigint)
    RETURNS TABLE (counted_until timestamptz, usage_gap_at timestamptz, clock_epoch bigint,
                   clock_epoch_started_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT least(
                   (SELECT min(CASE WHEN n.clock_epoch IS NOT DISTINCT FROM p_clock_epoch
                                    THEN n.events_written_until ELSE clock.started_at END)
                    FROM nodes n WHERE n.id <> p_own_node_id AND NOT n.is_expired),
                   (SELECT min(CASE WHEN p_clock_epoch IS NOT NULL
                                         AND oldest_event_at > database_time() + interval '1 second'
                                    THEN clock.started_at ELSE oldest_event_at END)
                    FROM audit_outbox WHERE cardinality(usage_key_ids) > 0)),
               greatest(
                   (SELECT max(renewed_at + lease) FROM nodes WHERE is_expired),
                   (SELECT max(reconnected_at) FROM nodes)),
               clock.epoch, clock.started_at
        FROM clock_epoch clock
    $$;

-- Deletes counts by minute that are older than two hours, a limited number at a time.
CREATE FUNCTION prune_usage_minutes(p_now timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM key_usage_minutes WHERE (key_id, minute) IN (
            SELECT m.key_id, m.minute FROM key_usage_minutes m
            WHERE m.minute < pruning_time(p_now) - interval '2 hours' LIMIT 50000)
    $$;

-- Deletes counts by hour that are older than an authenticated setting, a limited number at a time,
-- and the clients of keys without a use since then.
CREATE FUNCTION prune_key_usage(
    p_now timestamptz, p_retention_seconds bigint, p_key_id bytea, p_mac bytea
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        oldest CONSTANT timestamptz :=
            pruning_time(p_now) - p_retention_seconds * interval '1 second';
    BEGIN
        PERFORM require_signed_decision('audit.usage_retention_days',
                                        int8send(p_retention_seconds), p_key_id, p_mac);
        DELETE FROM key_usage_hours WHERE ctid = ANY (ARRAY(
            SELECT h.ctid FROM key_usage_hours h WHERE h.hour < oldest LIMIT 50000));
        DELETE FROM key_usage_clients c USING api_key_activity a
        WHERE a.last_used_at < oldest AND c.key_id = a.key_id;
    END
    $$;

REVOKE ALL ON FUNCTION add_key_usage, usage_watermark, prune_usage_minutes, prune_key_usage
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION usage_watermark, prune_usage_minutes, prune_key_usage TO call2me_auth_app;
