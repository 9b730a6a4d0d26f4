-- Rotation: a period in which a key was certainly not used, confirmed when a report first called the key safe to
-- revoke. A later report on any node reads it, so the verdict never goes back without a use of the key, whichever
-- node answers and whatever happens to the others.
CREATE TABLE quiet_keys (
    key_id uuid PRIMARY KEY REFERENCES api_keys ON DELETE CASCADE,
    workspace_id uuid NOT NULL,
    -- The successor that had served traffic at that time; NULL if the key had no live successor.
    successor_id uuid,
    -- The confirmation is void once the key has a use after `quiet_since`.
    quiet_since timestamptz NOT NULL,
    quiet_until timestamptz NOT NULL,
    CHECK (quiet_since <= quiet_until)
);

ALTER TABLE quiet_keys ENABLE ROW LEVEL SECURITY;
CREATE POLICY quiet_keys_workspace ON quiet_keys TO call2me_auth_app
    USING (workspace_id = current_workspace()) WITH CHECK (workspace_id = current_workspace());
GRANT SELECT, INSERT, UPDATE ON quiet_keys TO call2me_auth_app;

-- A node says itself what it has written: the clock of PostgreSQL may be ahead of its own.
DROP FUNCTION register_node;
CREATE FUNCTION register_node(node uuid, lease interval, written timestamptz) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        head bigint;
    BEGIN
        DELETE FROM nodes WHERE lease_until < clock_timestamp() - interval '1 day';
        SELECT generation INTO head FROM invalidation_head;
        INSERT INTO nodes (id, acknowledged, lease_until, written_until)
        VALUES (node, head, clock_timestamp() + lease, written)
        ON CONFLICT (id) DO UPDATE
            SET acknowledged = excluded.acknowledged, lease_until = excluded.lease_until,
                written_until = excluded.written_until, interrupted_at = clock_timestamp();
        RETURN head;
    END
    $$;
REVOKE ALL ON FUNCTION register_node FROM PUBLIC;
GRANT EXECUTE ON FUNCTION register_node TO call2me_auth_app;
ALTER TABLE nodes ALTER written_until DROP DEFAULT;

-- As before, for nodes that start together in a new month: `to_regclass` reads a cache that does not see what another
-- transaction committed while this one waited for the lock.
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
            CONTINUE WHEN EXISTS (SELECT FROM pg_class
                                  WHERE relnamespace = 'public'::regnamespace AND relname = partition);
            -- Built aside and attached, which locks the parent against nobody.
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
