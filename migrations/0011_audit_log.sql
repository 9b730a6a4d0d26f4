-- The audit log: events, the outbox of events that are not sealed yet, and the hash chains.
--
-- The transaction that writes events also writes an entry of the audit outbox, which holds their
-- ids and digests. One node at a time seals: in one transaction it appends the events of outbox
-- entries to the hash chain of their workspace, adds up the usage of API keys, and deletes the
-- entries. So each event is sealed once and counted once.

------------------------------------------------------------------------------------------------
-- Tables

-- Ids are UUIDv7, so they are ordered by time. A partition is a range of ids, one for each month,
-- so a page of the newest events reads the newest partition only.
CREATE TABLE audit_events (
    id uuid NOT NULL,
    workspace_id uuid NOT NULL,
    action text NOT NULL,
    actor_type text NOT NULL,
    actor_id uuid,
    actor_name text,
    target_type text,
    target_id uuid,
    target_name text,
    request_id uuid,
    method text,
    path text,
    status smallint,
    ip inet,
    user_agent text,
    latency_us bigint,
    metadata jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (workspace_id, id)
) PARTITION BY RANGE (id);
CREATE INDEX audit_events_actor_id_idx ON audit_events (actor_id, id);
-- Events of changes only: API requests are a thousand times as many and are not filtered by action.
CREATE INDEX audit_events_action_idx ON audit_events (workspace_id, action, id)
    WHERE action <> 'request';
CREATE INDEX audit_events_changes_idx ON audit_events (workspace_id, id) WHERE action <> 'request';

CREATE TABLE audit_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The time of the oldest event.
    oldest_event_at timestamptz NOT NULL,
    workspace_ids uuid[] NOT NULL,
    event_ids uuid[] NOT NULL,
    -- SHA-256 of the canonical form of each event, concatenated.
    digests bytea NOT NULL CHECK (octet_length(digests) = 32 * cardinality(event_ids)),
    -- The usage of API keys. Each element counts the requests of one key in one minute from one
    -- address and user agent, to routes of one group and scope, with one class of status and one
    -- outcome.
    usage_key_ids uuid[] NOT NULL DEFAULT '{}',
    -- The first segment of the path, such as `agents`.
    usage_route_groups text[] NOT NULL DEFAULT '{}',
    -- The scope that the route requires.
    usage_scopes text[] NOT NULL DEFAULT '{}',
    -- The first digit of the response's status.
    usage_status_classes smallint[] NOT NULL DEFAULT '{}',
    -- `served`, `failed`, `unfinished`, or `rejected`: refused before it was a use of the key.
    usage_outcomes text[] NOT NULL DEFAULT '{}',
    usage_ips inet[] NOT NULL DEFAULT '{}',
    -- Empty if the client sent none.
    usage_user_agents text[] NOT NULL DEFAULT '{}',
    -- Method and path of the last of these requests.
    usage_last_methods text[] NOT NULL DEFAULT '{}',
    usage_last_paths text[] NOT NULL DEFAULT '{}',
    -- The ids of the first and the last event, which contain their times.
    usage_first_event_ids uuid[] NOT NULL DEFAULT '{}',
    usage_last_event_ids uuid[] NOT NULL DEFAULT '{}',
    usage_requests bigint[] NOT NULL DEFAULT '{}',
    CHECK (cardinality(workspace_ids) = cardinality(event_ids)),
    CHECK (cardinality(usage_key_ids) = ALL (ARRAY[
        cardinality(usage_route_groups), cardinality(usage_scopes),
        cardinality(usage_status_classes), cardinality(usage_outcomes), cardinality(usage_ips),
        cardinality(usage_user_agents), cardinality(usage_last_methods),
        cardinality(usage_last_paths), cardinality(usage_first_event_ids),
        cardinality(usage_last_event_ids), cardinality(usage_requests)])),
    -- The counts that the sealer adds up are in range, also after many entries, and its indexes can
    -- hold these texts. Ids with a time before the year 9000: see is_supported_time().
    CHECK (0 <= ALL (usage_requests) AND 1000000000 >= ALL (usage_requests)),
    CHECK ('c9c467c9-0400-0000-0000-000000000000' > ALL (usage_first_event_ids)),
    CHECK ('c9c467c9-0400-0000-0000-000000000000' > ALL (usage_last_event_ids)),
    CHECK (are_at_most(usage_route_groups, 512)),
    CHECK (are_at_most(usage_scopes, 512)),
    CHECK (are_at_most(usage_user_agents, 1024))
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Written once, read once, and not compressible.
ALTER TABLE audit_outbox ALTER workspace_ids SET STORAGE EXTERNAL,
    ALTER event_ids SET STORAGE EXTERNAL, ALTER digests SET STORAGE EXTERNAL;

-- Segments of the hash chains: the events of one workspace that were sealed together.
CREATE TABLE audit_chain_segments (
    workspace_id uuid NOT NULL,
    -- The sequence numbers of the first and the last event. A chain starts with 1.
    first_sequence bigint NOT NULL,
    last_sequence bigint NOT NULL,
    -- The chain's hash before the first event.
    previous_hash bytea NOT NULL CHECK (octet_length(previous_hash) = 32),
    event_ids uuid[] NOT NULL,
    -- The chain's hash after each event, concatenated.
    hashes bytea NOT NULL,
    sealed_at timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, last_sequence, sealed_at),
    CHECK (first_sequence > 0),
    CHECK (cardinality(event_ids) = last_sequence - first_sequence + 1),
    CHECK (octet_length(hashes) = 32 * cardinality(event_ids))
) PARTITION BY RANGE (sealed_at);
ALTER TABLE audit_chain_segments ALTER event_ids SET STORAGE EXTERNAL,
    ALTER hashes SET STORAGE EXTERNAL;

-- The end of each chain.
CREATE TABLE audit_chain_heads (
    workspace_id uuid PRIMARY KEY,
    sequence bigint NOT NULL,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    sealed_at timestamptz NOT NULL
) WITH (fillfactor = 70);

-- Rejected credentials that are not known belong to no workspace. They are counted by address.
CREATE TABLE unknown_credential_counts (
    address inet NOT NULL,
    minute timestamptz NOT NULL,
    -- The service counts up to this maximum.
    attempts bigint NOT NULL CHECK (attempts BETWEEN 0 AND 1000000000000000),
    PRIMARY KEY (minute, address)
);

------------------------------------------------------------------------------------------------
-- Rights of the role: it inserts events and cannot change or delete them. Partitions are not
-- granted, because a grant on a partition bypasses the policies of its parent.

GRANT SELECT, INSERT ON audit_events TO call2me_auth_app;
ALTER TABLE audit_events ENABLE ROW LEVEL SECURITY;
CREATE POLICY audit_events_by_workspace ON audit_events TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()))
    WITH CHECK (workspace_id = (SELECT current_workspace_id()));

GRANT INSERT (oldest_event_at, workspace_ids, event_ids, digests) ON audit_outbox
    TO call2me_auth_app;
ALTER TABLE audit_outbox ENABLE ROW LEVEL SECURITY;
CREATE POLICY audit_outbox_by_workspace ON audit_outbox FOR INSERT TO call2me_auth_app
    WITH CHECK (workspace_ids = ARRAY[(SELECT current_workspace_id())]);

GRANT SELECT ON audit_chain_segments TO call2me_auth_app;
ALTER TABLE audit_chain_segments ENABLE ROW LEVEL SECURITY;
CREATE POLICY audit_chain_segments_by_workspace ON audit_chain_segments TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()));

GRANT SELECT ON audit_chain_heads TO call2me_auth_app;
ALTER TABLE audit_chain_heads ENABLE ROW LEVEL SECURITY;
CREATE POLICY audit_chain_heads_by_workspace ON audit_chain_heads TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()));

GRANT SELECT, INSERT, UPDATE (attempts) ON unknown_credential_counts TO call2me_auth_app;

------------------------------------------------------------------------------------------------
-- Partitions

-- Creates the partitions of events and of segments for the month of `p_time`, unless they exist.
-- Only the owner may.
CREATE FUNCTION create_audit_partition(p_time timestamptz) RETURNS void
    LANGUAGE plpgsql SET search_path = public, pg_temp
    AS $$
    DECLARE
        month_start timestamptz := date_trunc('month', p_time, 'UTC');
        month_end timestamptz :=
            (date_trunc('month', p_time AT TIME ZONE 'UTC') + interval '1 month')
            AT TIME ZONE 'UTC';
        parent text;
        partition text;
    BEGIN
        FOREACH parent IN ARRAY ARRAY['audit_events', 'audit_chain_segments'] LOOP
            partition := parent || to_char(month_start AT TIME ZONE 'UTC', '_YYYY_MM');
            CONTINUE WHEN to_regclass('public.' || partition) IS NOT NULL;
            PERFORM pg_advisory_xact_lock(hashtext('create_audit_partition'));
            -- `to_regclass` reads a cache, which does not contain a partition that another
            -- transaction created while this one waited for the lock.
            CONTINUE WHEN EXISTS (
                SELECT FROM pg_class
                WHERE relnamespace = 'public'::regnamespace AND relname = partition);
            -- Created as a table and then attached, which does not block readers and writers of
            -- the parent. CREATE TABLE … PARTITION OF would wait for a long export, and block all
            -- others meanwhile.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', partition, parent);
            IF parent = 'audit_events' THEN
                EXECUTE format(
                    'ALTER TABLE audit_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                    partition, uuidv7_lower_bound(month_start), uuidv7_lower_bound(month_end));
            ELSE
                EXECUTE format(
                    'ALTER TABLE audit_chain_segments ATTACH PARTITION %I '
                    'FOR VALUES FROM (%L) TO (%L)',
                    partition, month_start, month_end);
            END IF;
        END LOOP;
    END
    $$;

-- As above, for the role. It creates partitions within three months of the present only: a query of
-- a log locks each partition that may have its events, and a few dozen queries of hundreds of
-- partitions need more locks than PostgreSQL has.
CREATE FUNCTION create_present_audit_partition(p_time timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        suffix CONSTANT text := to_char(p_time AT TIME ZONE 'UTC', '_YYYY_MM');
        present CONSTANT timestamptz := database_time();
    BEGIN
        IF to_regclass('public.audit_events' || suffix) IS NOT NULL
            AND to_regclass('public.audit_chain_segments' || suffix) IS NOT NULL
        THEN
            RETURN;
        END IF;
        IF p_time BETWEEN present - interval '3 months' AND present + interval '3 months' THEN
            PERFORM create_audit_partition(p_time);
        ELSE
            RAISE EXCEPTION 'the time of a partition is out of range: %', p_time;
        END IF;
    END
    $$;

SELECT create_audit_partition(now() + month * interval '1 month')
FROM generate_series(-1, 2) AS month;

------------------------------------------------------------------------------------------------
-- Writing

-- Writes a batch of events of any workspaces, with its outbox entry. If `p_is_retry` is true, the
-- batch may be stored already, as a whole, and is then skipped. If it is false, the batch must not
-- be stored yet.
CREATE FUNCTION append_audit_events(
    p_ids uuid[], p_workspace_ids uuid[], p_actions text[],
    p_actor_types text[], p_actor_ids uuid[], p_actor_names text[],
    p_target_types text[], p_target_ids uuid[], p_target_names text[],
    p_request_ids uuid[], p_methods text[], p_paths text[], p_statuses smallint[],
    p_ips inet[], p_user_agents text[], p_latencies bigint[], p_metadatas jsonb[],
    p_digests bytea, p_oldest_event_at timestamptz,
    p_usage_key_ids uuid[], p_usage_route_groups text[], p_usage_scopes text[],
    p_usage_status_classes smallint[], p_usage_outcomes text[], p_usage_ips inet[],
    p_usage_user_agents text[], p_usage_last_methods text[], p_usage_last_paths text[],
    p_usage_first_event_ids uuid[], p_usage_last_event_ids uuid[], p_usage_requests bigint[],
    p_is_retry boolean
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    -- By default PostgreSQL plans for each batch, which costs as much as writing thirty events.
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        IF p_is_retry AND (cardinality(p_ids) = 0 OR EXISTS (
            SELECT FROM audit_events e
            WHERE e.workspace_id = p_workspace_ids[1] AND e.id = p_ids[1])) THEN
            RETURN;
        END IF;
        INSERT INTO audit_events (
            id, workspace_id, action, actor_type, actor_id, actor_name, target_type, target_id,
            target_name, request_id, method, path, status, ip, user_agent, latency_us, metadata)
        SELECT * FROM unnest(
            p_ids, p_workspace_ids, p_actions, p_actor_types, p_actor_ids, p_actor_names,
            p_target_types, p_target_ids, p_target_names, p_request_ids, p_methods, p_paths,
            p_statuses, p_ips, p_user_agents, p_latencies, p_metadatas);
        INSERT INTO audit_outbox (
            oldest_event_at, workspace_ids, event_ids, digests, usage_key_ids, usage_route_groups,
            usage_scopes, usage_status_classes, usage_outcomes, usage_ips, usage_user_agents,
            usage_last_methods, usage_last_paths, usage_first_event_ids, usage_last_event_ids,
            usage_requests)
        VALUES (
            p_oldest_event_at, p_workspace_ids, p_ids, p_digests, p_usage_key_ids,
            p_usage_route_groups, p_usage_scopes, p_usage_status_classes, p_usage_outcomes,
            p_usage_ips, p_usage_user_agents, p_usage_last_methods, p_usage_last_paths,
            p_usage_first_event_ids, p_usage_last_event_ids, p_usage_requests);
    END
    $$;

-- Deletes counts that are older than 30 days.
CREATE FUNCTION prune_unknown_credential_counts() RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM unknown_credential_counts WHERE minute < now() - interval '30 days' $$;

------------------------------------------------------------------------------------------------
-- Sealing

-- Returns the oldest outbox entries after an entry, without those to skip: at most `p_max_entries`
-- of them, and no more once they hold `p_max_events` events. Entries become visible in any order.
CREATE FUNCTION list_outbox_entries_after(
    p_entry_id bigint, p_skipped_ids bigint[], p_max_entries integer, p_max_events integer
)
    RETURNS TABLE (id bigint, oldest_event_at timestamptz, workspace_ids uuid[], event_ids uuid[],
                   digests bytea)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT entry.id, entry.oldest_event_at, entry.workspace_ids, entry.event_ids, entry.digests
        FROM (
            SELECT oldest.*,
                   sum(cardinality(oldest.event_ids)) OVER (ORDER BY oldest.id)
                       - cardinality(oldest.event_ids) AS events_before
            FROM (SELECT * FROM audit_outbox
                  WHERE audit_outbox.id > p_entry_id AND audit_outbox.id <> ALL (p_skipped_ids)
                  ORDER BY audit_outbox.id LIMIT p_max_entries) oldest
        ) entry
        WHERE entry.events_before < p_max_events ORDER BY entry.id
    $$;

-- Returns the id of the first of these entries.
CREATE FUNCTION find_outbox_entry_after(p_entry_id bigint, p_skipped_ids bigint[]) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT min(id) FROM audit_outbox WHERE id > p_entry_id AND id <> ALL (p_skipped_ids)
    $$;

CREATE FUNCTION find_chain_heads(p_workspace_ids uuid[])
    RETURNS TABLE (workspace_id uuid, sequence bigint, hash bytea)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT h.workspace_id, h.sequence, h.hash FROM audit_chain_heads h
        WHERE h.workspace_id = ANY (p_workspace_ids)
    $$;

-- Appends a segment to each of these chains, adds up the usage in the outbox entries and deletes
-- them. `p_event_ids` holds the events of all segments, one segment after the other. `p_hashes`
-- holds one value for each segment. `p_now` is a time of the epoch `p_clock_epoch`, in microseconds
-- since 1970. The epoch is NULL if the caller does not follow the clock.
--
-- Hashes and times are those of a node, which the MAC proves: injected SQL would break the chains
-- of all workspaces, or change when their keys were last used.
CREATE FUNCTION append_chain_segments(
    p_now bigint, p_clock_epoch bigint, p_entry_ids bigint[], p_workspace_ids uuid[],
    p_first_sequences bigint[], p_last_sequences bigint[], p_previous_hashes bytea[],
    p_hashes bytea[], p_event_ids uuid[], p_key_id bytea, p_mac bytea
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        clock CONSTANT clock_epoch := (SELECT c FROM clock_epoch c);
        sealing_time CONSTANT timestamptz := timestamp_of_micros(p_now);
        deleted bigint;
    BEGIN
        PERFORM require_signed_decision(
            'append_chain_segments',
            int8send(p_now) || int8send(coalesce(p_clock_epoch, -1))
                || sha256(convert_to(p_entry_ids::text, 'UTF8'))
                || (SELECT sha256(coalesce(string_agg(hash, ''::bytea ORDER BY position), ''))
                    FROM unnest(p_hashes) WITH ORDINALITY AS segment (hash, position)),
            p_key_id, p_mac);
        PERFORM pg_advisory_xact_lock(hashtext('seal'));
        IF p_clock_epoch <> clock.epoch THEN
            RAISE EXCEPTION 'the clock has changed' USING ERRCODE = 'MC003';
        END IF;
        IF (SELECT coalesce(sum(cardinality(event_ids)), 0) FROM audit_outbox
            WHERE id = ANY (p_entry_ids)) <> cardinality(p_event_ids) THEN
            RAISE EXCEPTION 'the audit outbox has changed';
        END IF;
        -- A chain continues only at its end.
        IF EXISTS (
            SELECT FROM unnest(p_workspace_ids, p_first_sequences, p_previous_hashes)
                AS segment (workspace, first, previous)
            LEFT JOIN audit_chain_heads head ON head.workspace_id = segment.workspace
            WHERE first <> coalesce(head.sequence, 0) + 1 OR previous <> head.hash
        ) THEN
            RAISE EXCEPTION 'the end of a chain has changed';
        END IF;
        -- The clock may have been set back. The segments of a chain are still in order in the
        -- partitions.
        INSERT INTO audit_chain_segments (workspace_id, first_sequence, last_sequence,
                                          previous_hash, event_ids, hashes, sealed_at)
        SELECT workspace, first, last, previous,
               p_event_ids[end_index - (last - first) : end_index], segments.hash,
               greatest(sealing_time, head.sealed_at)
        FROM (
            SELECT *, sum(last - first + 1) OVER (ORDER BY position)::integer AS end_index
            FROM unnest(p_workspace_ids, p_first_sequences, p_last_sequences, p_previous_hashes,
                        p_hashes) WITH ORDINALITY
                AS segment (workspace, first, last, previous, hash, position)
        ) segments
        LEFT JOIN audit_chain_heads head ON head.workspace_id = segments.workspace;
        INSERT INTO audit_chain_heads AS head (workspace_id, sequence, hash, sealed_at)
        SELECT workspace, last, substring(segment.hash FROM octet_length(segment.hash) - 31),
               sealing_time
        FROM unnest(p_workspace_ids, p_last_sequences, p_hashes) AS segment (workspace, last, hash)
        ON CONFLICT (workspace_id) DO UPDATE
            SET sequence = excluded.sequence, hash = excluded.hash,
                sealed_at = greatest(head.sealed_at, excluded.sealed_at);
        PERFORM add_key_usage(p_entry_ids, clock,
                              CASE WHEN p_clock_epoch IS NOT NULL THEN sealing_time END);
        DELETE FROM audit_outbox WHERE id = ANY (p_entry_ids);
        GET DIAGNOSTICS deleted = ROW_COUNT;
        IF deleted <> cardinality(p_entry_ids) THEN
            RAISE EXCEPTION 'the audit outbox has changed';
        END IF;
    END
    $$;

------------------------------------------------------------------------------------------------
-- Verification

-- Returns every workspace that has or had an audit log, also one whose chain was deleted.
CREATE FUNCTION list_audited_workspaces() RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        -- Skips from one workspace to the next in the index, because a log has many events and few
        -- workspaces.
        WITH RECURSIVE with_events AS (
            (SELECT e.workspace_id FROM audit_events e ORDER BY e.workspace_id LIMIT 1)
            UNION ALL
            SELECT (SELECT e.workspace_id FROM audit_events e
                    WHERE e.workspace_id > previous.workspace_id
                    ORDER BY e.workspace_id LIMIT 1)
            FROM with_events previous WHERE previous.workspace_id IS NOT NULL
        ), with_segments AS (
            (SELECT s.workspace_id FROM audit_chain_segments s ORDER BY s.workspace_id LIMIT 1)
            UNION ALL
            SELECT (SELECT s.workspace_id FROM audit_chain_segments s
                    WHERE s.workspace_id > previous.workspace_id
                    ORDER BY s.workspace_id LIMIT 1)
            FROM with_segments previous WHERE previous.workspace_id IS NOT NULL
        )
        SELECT workspace_id FROM with_events WHERE workspace_id IS NOT NULL
        UNION SELECT workspace_id FROM with_segments WHERE workspace_id IS NOT NULL
        UNION SELECT workspace_id FROM audit_chain_heads
    $$;

-- Returns the ids of a workspace's events that are stored and not sealed yet.
CREATE FUNCTION list_unsealed_event_ids(p_workspace_id uuid) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT event.event_id
        FROM audit_outbox entry,
             unnest(entry.workspace_ids, entry.event_ids) AS event (workspace_id, event_id)
        WHERE event.workspace_id = p_workspace_id
    $$;

------------------------------------------------------------------------------------------------
-- Retention

-- Returns the first and the last entry of the outbox.
CREATE FUNCTION outbox_bounds() RETURNS TABLE (first bigint, last bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT min(id), max(id) FROM audit_outbox $$;

-- Returns the workspaces that are about to lose events or chain segments from before these times,
-- and whose log does not record it yet. `sequence` and `hash` tell where the chain will begin:
-- after this sequence number, with this hash.
CREATE FUNCTION list_pending_prune_events(
    p_events_before timestamptz, p_segments_before timestamptz
)
    RETURNS TABLE (workspace_id uuid, sequence bigint, hash bytea)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT w.id, coalesce(s.last_sequence, 0),
               substring(s.hashes FROM octet_length(s.hashes) - 31)
        FROM list_audited_workspaces() AS w (id)
        LEFT JOIN LATERAL (
            SELECT segment.last_sequence, segment.hashes FROM audit_chain_segments segment
            WHERE segment.workspace_id = w.id AND segment.sealed_at < p_segments_before
            ORDER BY segment.last_sequence DESC LIMIT 1
        ) s ON true
        WHERE (s.last_sequence IS NOT NULL OR EXISTS (
                   SELECT FROM audit_events e
                   WHERE e.workspace_id = w.id AND e.id < uuidv7_lower_bound(p_events_before)))
          AND NOT EXISTS (
              SELECT FROM audit_events pruning
              WHERE pruning.workspace_id = w.id AND pruning.action = 'workspace.log_pruned'
                -- Compared as text, in which the timestamps of events sort too. A forged event with
                -- malformed metadata must not make this query fail for all workspaces.
                AND pruning.metadata ->> 'before' >=
                    to_char(p_events_before AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                AND CASE WHEN pruning.metadata ->> 'sequence' ~ '^[0-9]{1,18}$'
                         THEN (pruning.metadata ->> 'sequence')::bigint
                              >= coalesce(s.last_sequence, 0)
                         ELSE false END)
    $$;

REVOKE ALL ON FUNCTION create_audit_partition, create_present_audit_partition, append_audit_events,
    prune_unknown_credential_counts, list_outbox_entries_after, find_outbox_entry_after,
    find_chain_heads, append_chain_segments, list_audited_workspaces, list_unsealed_event_ids, outbox_bounds,
    list_pending_prune_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_present_audit_partition, append_audit_events,
    prune_unknown_credential_counts, list_outbox_entries_after, find_outbox_entry_after,
    find_chain_heads, append_chain_segments, list_audited_workspaces, list_unsealed_event_ids, outbox_bounds,
    list_pending_prune_events TO call2me_auth_app;
