-- Quarantine: a database that was restored from a backup revives what was revoked after the backup.
-- Nodes get no lease on it, and answer 503, until the operator runs `admin restore finish`.
--
-- The database decides this itself, so all nodes agree. SQL that an attacker injects can neither
-- change the row nor name another identity.

CREATE TABLE database_state (
    is_singleton boolean PRIMARY KEY DEFAULT true CHECK (is_singleton),
    -- The identity of the database at its first use, and after each `admin restore finish`. NULL:
    -- no node has used it. A dump that is restored has another identity. A standby that is promoted
    -- has the same, and so has a base backup.
    system_identifier bigint,
    database oid,
    generation_table oid,
    -- The reason and the time of a quarantine that the identity does not show.
    quarantine_reason text,
    quarantined_at timestamptz,
    CHECK ((quarantine_reason IS NULL) = (quarantined_at IS NULL)),
    CHECK (num_nulls(system_identifier, database, generation_table) IN (0, 3))
);
INSERT INTO database_state DEFAULT VALUES;

-- Returns the identity of this database.
CREATE FUNCTION database_identity(
    OUT system_identifier bigint, OUT database oid, OUT generation_table oid
)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT (pg_control_system()).system_identifier,
               (SELECT oid FROM pg_database WHERE datname = current_database()),
               'invalidation_generation'::regclass::oid
    $$;

-- Returns the reason why the database is in quarantine. NULL: it is not.
CREATE FUNCTION quarantine_reason() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT coalesce(
            s.quarantine_reason,
            CASE WHEN s.system_identifier IS NOT NULL
                      AND (s.system_identifier, s.database, s.generation_table)
                          IS DISTINCT FROM (i.system_identifier, i.database, i.generation_table)
                 THEN 'the database was restored from a dump, or copied' END)
        FROM database_state s, database_identity() i
    $$;

-- Records the identity of a database that no node has used.
CREATE FUNCTION claim_database() RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        UPDATE database_state s
        SET system_identifier = i.system_identifier, database = i.database,
            generation_table = i.generation_table
        FROM database_identity() i
        WHERE s.system_identifier IS NULL
    $$;

-- A running node has applied a generation that this database has lost. If the history is the same,
-- the database was replaced by a backup of itself. Otherwise it may be a failover that has lost the
-- last moments: then the node's own renewals are counted, of which the database has lost as many.
-- Returns true if the database is in quarantine now.
CREATE FUNCTION report_lost_generation(
    p_id uuid, p_registration integer, p_renewals bigint, p_interval interval,
    p_is_same_history boolean, p_issued_at bigint, p_key_id bytea, p_mac bytea
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        lost bigint := p_renewals - coalesce(
            (SELECT renewals FROM nodes WHERE (id, registration) = (p_id, p_registration)), 0);
    BEGIN
        PERFORM require_fresh_decision(
            'report_lost_generation',
            uuid_send(p_id) || int4send(p_registration) || int8send(p_renewals)
                || interval_send(p_interval) || boolsend(p_is_same_history),
            p_issued_at, p_key_id, p_mac);
        IF p_is_same_history OR lost * p_interval >= interval '1 minute' THEN
            PERFORM require_synchronous_commit();
            UPDATE database_state
            SET quarantined_at = clock_timestamp(),
                quarantine_reason =
                    'the database has lost changes that a running node knows: it was restored'
            WHERE quarantined_at IS NULL;
        END IF;
        RETURN quarantine_reason() IS NOT NULL;
    END
    $$;

REVOKE ALL ON FUNCTION database_identity, quarantine_reason, claim_database,
    report_lost_generation FROM PUBLIC;
GRANT EXECUTE ON FUNCTION quarantine_reason, report_lost_generation TO call2me_auth_app;
