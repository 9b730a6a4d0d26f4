-- Checks that apply to all tables: every node can decode each time, each array and all JSON, and
-- each value is small: one row must not cost a node its memory. See is_supported_time() in the
-- first file. Tables of later files add the checks themselves.

DO $$
DECLARE
    of_column record;
BEGIN
    FOR of_column IN
        SELECT c.relname AS table_name, a.attname AS name,
               CASE WHEN t.typcategory = 'A' THEN 'is_plain_array'
                    WHEN t.oid = 'jsonb'::regtype THEN 'is_readable_json'
                    ELSE 'is_supported_time' END AS check_function
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type t ON t.oid = a.atttypid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
          AND NOT c.relispartition AND c.relname <> '_sqlx_migrations'
          AND (t.typcategory = 'A' OR t.oid IN ('timestamptz'::regtype, 'jsonb'::regtype))
        ORDER BY c.relname, a.attnum
    LOOP
        EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I CHECK (%I(%I))',
                       of_column.table_name,
                       of_column.table_name || '_' || of_column.name || '_is_readable',
                       of_column.check_function, of_column.name);
    END LOOP;
END
$$;

-- The limits, in bytes of the text or in elements of an array. Those of services are lower, such as
-- 100 characters for a name and 2000 bytes for a redirect URI. They are not measured with
-- pg_column_size(), because a value that is copied from another row is compressed.
DO $$
DECLARE
    of_column record;
BEGIN
    FOR of_column IN
        SELECT c.relname AS table_name, a.attname AS name,
               format(
                   CASE WHEN t.oid IN ('text'::regtype, 'bytea'::regtype)
                            THEN 'octet_length(%1$I) <= %2$s'
                        WHEN t.oid = 'jsonb'::regtype
                            THEN '%1$I = ''{}'' OR octet_length(%1$I::text) <= %2$s'
                        WHEN t.oid = 'json'::regtype THEN 'octet_length(%1$I::text) <= %2$s'
                        WHEN t.oid = 'text[]'::regtype
                            THEN 'cardinality(%1$I) <= %2$s AND are_at_most(%1$I, 2048)'
                        ELSE 'cardinality(%1$I) <= %2$s' END,
                   a.attname,
                   coalesce(larger.maximum,
                            CASE WHEN t.typcategory = 'A' THEN 1000
                                 WHEN t.oid IN ('json'::regtype, 'jsonb'::regtype) THEN 65536
                                 ELSE 2048 END)) AS condition
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN (VALUES
            -- The sealer appends a few thousand events at a time.
            ('audit_chain_segments', 'event_ids', 10000),
            ('audit_chain_segments', 'hashes', 32 * 10000),
            ('audit_outbox', 'digests', 32 * 1000),
            -- More than `server.max_body_bytes` may be.
            ('documents', 'body', 32 * 1048576),
            ('idempotency_keys', 'sealed_response', 64 * 1048576),
            ('email_outbox', 'message', 1048576),
            ('oauth_authorization_requests', 'query', 16384)
        ) larger (table_name, name, maximum)
            ON larger.table_name = c.relname AND larger.name = a.attname
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
          AND NOT c.relispartition AND c.relname <> '_sqlx_migrations'
          AND (t.typcategory = 'A'
               OR t.oid IN ('text'::regtype, 'bytea'::regtype, 'json'::regtype, 'jsonb'::regtype))
        ORDER BY c.relname, a.attnum
    LOOP
        EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I CHECK (%s)',
                       of_column.table_name,
                       of_column.table_name || '_' || of_column.name || '_is_small',
                       of_column.condition);
    END LOOP;
END
$$;
