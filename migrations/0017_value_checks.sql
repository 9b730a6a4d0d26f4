-- Checks that apply to all tables: every node can decode each time, each array and all
-- JSON. See is_supported_time() in the first file. Tables of later files add the checks themselves.

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
