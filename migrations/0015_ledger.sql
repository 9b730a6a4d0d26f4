-- What the log proves, and what keys are used for.
--
-- Each batch of events leaves an entry in the ledger, in the transaction of the events: which events,
-- and the digest of each, made before PostgreSQL saw it. One node at a time reads the entries off the
-- path of requests, adds their events to the chain of their workspace, adds up what keys did, and
-- removes the entries, all in one transaction: every event is sealed once and counted once.

------------------------------------------------------------------------------------------------
-- The ledger

CREATE TABLE ledger (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The moment of the oldest event: what happened before is known once this entry is gone.
    since timestamptz NOT NULL,
    workspace_ids uuid[] NOT NULL,
    event_ids uuid[] NOT NULL,
    -- SHA-256 of each event's canonical form, one after the other. None: the sealer reads the events.
    digests bytea CHECK (octet_length(digests) = 32 * cardinality(event_ids)),
    -- What keys did, added up: see count_uses.
    uses json NOT NULL DEFAULT '[]',
    CHECK (cardinality(workspace_ids) = cardinality(event_ids))
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Written once, read once, and made of what does not compress.
ALTER TABLE ledger ALTER workspace_ids SET STORAGE EXTERNAL, ALTER event_ids SET STORAGE EXTERNAL,
    ALTER digests SET STORAGE EXTERNAL;

------------------------------------------------------------------------------------------------
-- The chain

-- A run of events that were sealed together. Insert-only, as the events are.
CREATE TABLE audit_seals (
    workspace_id uuid NOT NULL,
    -- The places of the first and the last event in the workspace's chain, which begins with 1.
    first_sequence bigint NOT NULL,
    last_sequence bigint NOT NULL,
    -- The chain's hash before the first.
    previous_hash bytea NOT NULL CHECK (octet_length(previous_hash) = 32),
    event_ids uuid[] NOT NULL,
    -- The chain's hash after each event, one after the other.
    hashes bytea NOT NULL,
    sealed_at timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, last_sequence, sealed_at),
    CHECK (first_sequence > 0),
    CHECK (cardinality(event_ids) = last_sequence - first_sequence + 1),
    CHECK (octet_length(hashes) = 32 * cardinality(event_ids))
) PARTITION BY RANGE (sealed_at);
ALTER TABLE audit_seals ALTER event_ids SET STORAGE EXTERNAL, ALTER hashes SET STORAGE EXTERNAL;

-- Where each chain ends.
CREATE TABLE chain_heads (
    workspace_id uuid PRIMARY KEY,
    sequence bigint NOT NULL,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    sealed_at timestamptz NOT NULL
) WITH (fillfactor = 70);

-- Makes the partitions of the month that holds a moment, of events and of seals. Built aside and
-- attached, which locks the parent against nobody.
CREATE OR REPLACE FUNCTION create_audit_partition(moment timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        first timestamptz := date_trunc('month', moment, 'UTC');
        after timestamptz :=
            (date_trunc('month', moment AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC';
        parent text;
        partition text;
    BEGIN
        IF abs(extract(epoch FROM moment - now())) > 20 * 366 * 86400 THEN
            RAISE EXCEPTION 'no partition is made for %', moment;
        END IF;
        FOREACH parent IN ARRAY ARRAY['audit_events', 'audit_seals'] LOOP
            partition := parent || to_char(first AT TIME ZONE 'UTC', '_YYYY_MM');
            CONTINUE WHEN to_regclass('public.' || partition) IS NOT NULL;
            PERFORM pg_advisory_xact_lock(hashtext('create_audit_partition'));
            CONTINUE WHEN to_regclass('public.' || partition) IS NOT NULL;
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', partition, parent);
            IF parent = 'audit_events' THEN
                EXECUTE format('ALTER TABLE audit_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                               partition, uuid_at(first), uuid_at(after));
            ELSE
                EXECUTE format('ALTER TABLE audit_seals ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                               partition, first, after);
            END IF;
        END LOOP;
    END
    $$;

SELECT create_audit_partition(now() + month * interval '1 month') FROM generate_series(-1, 2) AS month;

------------------------------------------------------------------------------------------------
-- What keys are used for: kept longer than the log itself, so it is added up

-- By the hour.
CREATE TABLE key_usage_hours (
    key_id uuid NOT NULL REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    hour timestamptz NOT NULL,
    -- The first word of the path, such as `agents`.
    route_group text NOT NULL,
    -- What the route asks of the key.
    scope text NOT NULL,
    -- The first digit of the answer's status.
    status_class smallint NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (key_id, hour, route_group, scope, status_class)
) WITH (fillfactor = 70);
CREATE INDEX key_usage_hours_hour_idx ON key_usage_hours (hour);

-- By the minute, for the last hour.
CREATE TABLE key_usage_minutes (
    key_id uuid NOT NULL REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    minute timestamptz NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (key_id, minute)
) WITH (fillfactor = 70);
CREATE INDEX key_usage_minutes_minute_idx ON key_usage_minutes (minute);

-- By whom: the thousand addresses and programs that used a key last.
CREATE TABLE key_usage_clients (
    key_id uuid NOT NULL REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    ip inet NOT NULL,
    -- Empty: it sent none.
    user_agent text NOT NULL,
    first_used_at timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL,
    last_method text NOT NULL,
    last_path text NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (key_id, ip, user_agent)
) WITH (fillfactor = 70);

-- Adds up what these entries say of keys. Each use in them is that of a key in one minute by one
-- program from one address, on routes of one group and scope, answered in one way.
CREATE FUNCTION count_uses(entries bigint[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
    DECLARE
        grown uuid[];
    BEGIN
        WITH uses AS MATERIALIZED (
            SELECT u.*, uuid_moment(u.first) AS first_used_at, uuid_moment(u.last) AS last_used_at
            FROM ledger l, json_to_recordset(l.uses) AS u(
                key_id uuid, workspace_id uuid, route_group text, scope text, status_class smallint,
                ip inet, user_agent text, method text, path text, first uuid, last uuid,
                requests bigint)
            WHERE l.id = ANY (entries) AND json_array_length(l.uses) > 0
              AND EXISTS (SELECT FROM api_keys k WHERE k.id = u.key_id)
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
        SELECT array_agg(DISTINCT key_id) INTO grown FROM clients WHERE is_new;
        DELETE FROM key_usage_clients c USING (
            SELECT key_id, ip, user_agent,
                   row_number() OVER (PARTITION BY key_id ORDER BY last_used_at DESC) AS place
            FROM key_usage_clients WHERE key_id = ANY (grown)
        ) known
        WHERE known.place > 1000 AND c.key_id = known.key_id AND c.ip = known.ip
          AND c.user_agent = known.user_agent;
    END
    $$;

------------------------------------------------------------------------------------------------
-- Writing

DROP FUNCTION append_new_audit_events;
DROP FUNCTION append_audit_events;

-- Writes a batch of events of any workspaces, and its entry in the ledger. `again`: it may have been
-- written before, all of it, and is then left alone; otherwise it certainly has not.
CREATE FUNCTION append_audit_events(
    ids uuid[], workspace_ids uuid[], actions text[],
    actor_types text[], actor_ids uuid[], actor_names text[],
    target_types text[], target_ids uuid[], target_names text[],
    request_ids uuid[], methods text[], paths text[], statuses smallint[],
    ips inet[], user_agents text[], latencies bigint[], metadatas jsonb[],
    digests bytea, since timestamptz, uses json, again boolean
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    -- Left to itself PostgreSQL plans for each batch anew, which costs as much as writing thirty events.
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        IF again AND EXISTS (SELECT FROM audit_events e
                             WHERE e.workspace_id = workspace_ids[1] AND e.id = ids[1]) THEN
            RETURN;
        END IF;
        INSERT INTO audit_events (
            id, workspace_id, action, actor_type, actor_id, actor_name, target_type, target_id,
            target_name, request_id, method, path, status, ip, user_agent, latency_us, metadata)
        SELECT * FROM unnest(
            ids, workspace_ids, actions, actor_types, actor_ids, actor_names, target_types,
            target_ids, target_names, request_ids, methods, paths, statuses, ips, user_agents,
            latencies, metadatas);
        INSERT INTO ledger (since, workspace_ids, event_ids, digests, uses)
        VALUES (since, workspace_ids, ids, digests, uses);
    END
    $$;

-- What was written before there was a ledger. Keys' totals hold it already.
INSERT INTO ledger (since, workspace_ids, event_ids)
SELECT min(uuid_moment(id)), array_agg(workspace_id ORDER BY id), array_agg(id ORDER BY id)
FROM (SELECT workspace_id, id, row_number() OVER (ORDER BY id) / 1000 AS batch FROM audit_events) old
GROUP BY batch ORDER BY batch;

------------------------------------------------------------------------------------------------
-- Sealing

-- The oldest entries of the ledger behind this one, until they hold so many events. Entries become visible in
-- any order.
CREATE FUNCTION ledger_behind(entry bigint, most integer, events integer)
    RETURNS TABLE (id bigint, since timestamptz, workspace_ids uuid[], event_ids uuid[], digests bytea)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT l.id, l.since, l.workspace_ids, l.event_ids, l.digests
        FROM (
            SELECT known.*,
                   sum(cardinality(known.event_ids)) OVER (ORDER BY known.id)
                       - cardinality(known.event_ids) AS before
            FROM (SELECT * FROM ledger WHERE ledger.id > entry ORDER BY ledger.id LIMIT most) known
        ) l
        WHERE l.before < events ORDER BY l.id
    $$;

-- Events of any workspaces, for entries without digests.
CREATE FUNCTION events_to_seal(workspaces uuid[], ids uuid[]) RETURNS SETOF audit_events
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT e.* FROM unnest(workspaces, ids) AS wanted (workspace_id, id)
        JOIN audit_events e ON e.workspace_id = wanted.workspace_id AND e.id = wanted.id
    $$;

CREATE FUNCTION chain_heads_of(workspaces uuid[])
    RETURNS TABLE (workspace_id uuid, sequence bigint, hash bytea)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT h.workspace_id, h.sequence, h.hash FROM chain_heads h
        WHERE h.workspace_id = ANY (workspaces)
    $$;

-- Adds a run of events to each of these chains, and settles entries of the ledger. The events of all
-- runs stand one after the other in `ids`; each run has its hashes in one piece.
CREATE FUNCTION seal(
    moment timestamptz, entries bigint[], workspaces uuid[], firsts bigint[], lasts bigint[],
    previous_hashes bytea[], hashes bytea[], ids uuid[]
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        settled bigint;
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtext('seal'));
        -- A chain goes on where it ended, and nowhere else.
        IF EXISTS (
            SELECT FROM unnest(workspaces, firsts, previous_hashes) AS run (workspace, first, previous)
            LEFT JOIN chain_heads head ON head.workspace_id = run.workspace
            WHERE first <> coalesce(head.sequence, 0) + 1 OR previous <> head.hash
        ) THEN
            RAISE EXCEPTION 'a chain has moved';
        END IF;
        INSERT INTO audit_seals (workspace_id, first_sequence, last_sequence, previous_hash, event_ids,
                                 hashes, sealed_at)
        SELECT workspace, first, last, previous, ids[behind - (last - first) : behind], hash, moment
        FROM (
            SELECT *, sum(last - first + 1) OVER (ORDER BY place)::integer AS behind
            FROM unnest(workspaces, firsts, lasts, previous_hashes, hashes) WITH ORDINALITY
                AS run (workspace, first, last, previous, hash, place)
        ) runs;
        INSERT INTO chain_heads AS head (workspace_id, sequence, hash, sealed_at)
        SELECT workspace, last, substring(hash FROM octet_length(hash) - 31), moment
        FROM unnest(workspaces, lasts, hashes) AS run (workspace, last, hash)
        ON CONFLICT (workspace_id) DO UPDATE
            SET sequence = excluded.sequence, hash = excluded.hash, sealed_at = excluded.sealed_at;
        PERFORM count_uses(entries);
        DELETE FROM ledger WHERE id = ANY (entries);
        GET DIAGNOSTICS settled = ROW_COUNT;
        IF settled <> cardinality(entries) THEN
            RAISE EXCEPTION 'the ledger has moved';
        END IF;
    END
    $$;

------------------------------------------------------------------------------------------------
-- Looking whether all is as it was sealed

-- Every workspace that has, or had, a log: also one whose chain somebody took away.
CREATE FUNCTION audited_workspaces() RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        -- From one to the next, since a log has many events and few workspaces.
        WITH RECURSIVE found AS (
            (SELECT e.workspace_id FROM audit_events e ORDER BY e.workspace_id LIMIT 1)
            UNION ALL
            SELECT (SELECT e.workspace_id FROM audit_events e WHERE e.workspace_id > f.workspace_id
                    ORDER BY e.workspace_id LIMIT 1)
            FROM found f WHERE f.workspace_id IS NOT NULL
        )
        SELECT workspace_id FROM found WHERE workspace_id IS NOT NULL
        UNION SELECT workspace_id FROM audit_seals
        UNION SELECT workspace_id FROM chain_heads
    $$;

-- Events of a workspace that are written and not yet sealed.
CREATE FUNCTION unsealed_events(workspace uuid) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT entry.event_id FROM ledger l, unnest(l.workspace_ids, l.event_ids) AS entry (workspace_id, event_id)
        WHERE entry.workspace_id = workspace
    $$;

------------------------------------------------------------------------------------------------
-- Retention

-- The first and the last entry of the ledger.
CREATE FUNCTION ledger_bounds() RETURNS TABLE (first bigint, last bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT min(id), max(id) FROM ledger $$;

-- The workspaces that lose events from before a moment, or seals from before another, and have not been
-- told; and where the chain of each begins then: behind this place, with this hash.
CREATE FUNCTION losing_workspaces(events_before timestamptz, seals_before timestamptz)
    RETURNS TABLE (workspace_id uuid, sequence bigint, hash bytea)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT w.id, coalesce(s.last_sequence, 0), substring(s.hashes FROM octet_length(s.hashes) - 31)
        FROM audited_workspaces() AS w (id)
        LEFT JOIN LATERAL (
            SELECT seal.last_sequence, seal.hashes FROM audit_seals seal
            WHERE seal.workspace_id = w.id AND seal.sealed_at < seals_before
            ORDER BY seal.last_sequence DESC LIMIT 1
        ) s ON true
        WHERE (s.last_sequence IS NOT NULL OR EXISTS (
                   SELECT FROM audit_events e
                   WHERE e.workspace_id = w.id AND e.id < uuid_at(events_before)))
          AND NOT EXISTS (
              SELECT FROM audit_events told
              WHERE told.workspace_id = w.id AND told.action = 'workspace.log_pruned'
                AND (told.metadata ->> 'before')::timestamptz >= events_before
                AND (told.metadata ->> 'sequence')::bigint >= coalesce(s.last_sequence, 0))
    $$;

------------------------------------------------------------------------------------------------
-- The keys that sign checkpoints: customers keep those for years, so these are published for good

ALTER TABLE signing_keys ADD purpose text NOT NULL DEFAULT 'access tokens'
    CHECK (purpose IN ('access tokens', 'checkpoints'));
ALTER TABLE signing_keys ADD CHECK (purpose <> 'checkpoints' OR retired_at IS NULL);

------------------------------------------------------------------------------------------------
-- Until when uses are known

ALTER TABLE nodes
    -- The node has written all that happened before.
    ADD written_until timestamptz NOT NULL DEFAULT clock_timestamp();

-- As before, but what left without a farewell is remembered for longer: it may have taken uses of a
-- key with it.
CREATE OR REPLACE FUNCTION register_node(node uuid, lease interval) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        head bigint;
    BEGIN
        DELETE FROM nodes WHERE lease_until < clock_timestamp() - interval '1 day';
        SELECT generation INTO head FROM invalidation_head;
        INSERT INTO nodes (id, acknowledged, lease_until)
        VALUES (node, head, clock_timestamp() + lease)
        ON CONFLICT (id) DO UPDATE
            SET acknowledged = excluded.acknowledged, lease_until = excluded.lease_until;
        RETURN head;
    END
    $$;

DROP FUNCTION renew_lease;
-- False: the node is registered no longer.
CREATE FUNCTION renew_lease(node uuid, applied bigint, lease interval, written timestamptz)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        UPDATE nodes SET acknowledged = applied, lease_until = clock_timestamp() + lease,
                         written_until = written
        WHERE id = node;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        -- Also without anything new: it shows the node that its listener lives.
        PERFORM pg_notify('call2me_acknowledgements', '');
        RETURN true;
    END
    $$;

-- Until when every use of a key is counted that other nodes have seen (NULL: until now), and when the
-- last of the nodes ended that left without a farewell.
CREATE FUNCTION uses_known(own uuid) RETURNS TABLE (until timestamptz, node_lost_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT least(
                   (SELECT min(written_until) FROM nodes
                    WHERE id <> own AND lease_until > clock_timestamp()),
                   (SELECT min(since) FROM ledger)),
               (SELECT max(lease_until) FROM nodes WHERE lease_until <= clock_timestamp())
    $$;

-- Forgets what is older: minutes after two hours, the rest when it is asked to.
CREATE FUNCTION prune_key_usage(moment timestamptz, oldest timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM key_usage_minutes WHERE minute < moment - interval '2 hours';
        DELETE FROM key_usage_hours WHERE hour < oldest;
        DELETE FROM key_usage_clients WHERE last_used_at < oldest;
    $$;

------------------------------------------------------------------------------------------------
-- What the role may do

REVOKE ALL ON FUNCTION append_audit_events, count_uses, ledger_behind, events_to_seal, chain_heads_of,
    seal, audited_workspaces, unsealed_events, ledger_bounds, losing_workspaces, renew_lease, uses_known,
    prune_key_usage FROM PUBLIC;
GRANT EXECUTE ON FUNCTION append_audit_events, ledger_behind, events_to_seal, chain_heads_of, seal,
    audited_workspaces, unsealed_events, ledger_bounds, losing_workspaces, renew_lease, uses_known,
    prune_key_usage TO call2me_auth_app;

-- Seals are made by the function alone.
GRANT SELECT ON audit_seals, chain_heads, key_usage_hours, key_usage_minutes, key_usage_clients
    TO call2me_auth_app;
GRANT INSERT (since, workspace_ids, event_ids, digests) ON ledger TO call2me_auth_app;

ALTER TABLE ledger ENABLE ROW LEVEL SECURITY;
CREATE POLICY ledger_workspace ON ledger FOR INSERT TO call2me_auth_app
    WITH CHECK (workspace_ids = ARRAY[current_workspace()]);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['audit_seals', 'chain_heads', 'key_usage_hours', 'key_usage_minutes',
                                'key_usage_clients'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO call2me_auth_app
                        USING (workspace_id = current_workspace())', name || '_workspace', name);
    END LOOP;
END
$$;
