-- Stored responses to creating requests, so that a retry does nothing twice.

-- The role has no rights on the table. A caller of the functions below needs the id of a row, a MAC
-- that only the service can compute.
CREATE TABLE idempotency_keys (
    -- A MAC of the caller, the route and the Idempotency-Key.
    id bytea PRIMARY KEY CHECK (octet_length(id) = 32),
    -- A MAC of the request's body.
    request_mac bytea NOT NULL CHECK (octet_length(request_mac) = 32),
    -- Encrypted under a key that is derived from the Idempotency-Key.
    sealed_response bytea NOT NULL,
    expires_at timestamptz NOT NULL,
    -- The workspace of the request, and the size that counts as its documents (`document_usage`): a
    -- client can store a document, delete it, and leave the response.
    workspace_id uuid,
    counted_bytes integer NOT NULL DEFAULT 0
);
CREATE INDEX idempotency_keys_expires_at_idx ON idempotency_keys (expires_at);

-- Locks an idempotency key for this transaction and returns the stored response, if there is one.
-- `has_lock` is false if another transaction holds the lock.
CREATE FUNCTION lock_idempotency_key(p_id bytea, p_now timestamptz)
    RETURNS TABLE (has_lock boolean, request_mac bytea, sealed_response bytea)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        has_lock := pg_try_advisory_xact_lock(
            ('x' || encode(substring(p_id FOR 8), 'hex'))::bit(64)::bigint);
        IF has_lock THEN
            -- A separate statement sees all that was committed before it got the lock.
            SELECT stored.request_mac, stored.sealed_response INTO request_mac, sealed_response
            FROM idempotency_keys stored WHERE stored.id = p_id AND stored.expires_at > p_now;
        END IF;
        RETURN NEXT;
    END
    $$;

-- Stores a response, in the transaction of the work.
CREATE FUNCTION store_idempotent_response(
    p_id bytea, p_request_mac bytea, p_sealed_response bytea, p_expires_at timestamptz
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        workspace CONSTANT uuid := current_workspace_id();
        size CONSTANT integer := octet_length(p_sealed_response);
    BEGIN
        -- A workspace without documents has no row.
        UPDATE document_usage SET bytes = bytes + size WHERE workspace_id = workspace;
        INSERT INTO idempotency_keys AS stored (id, request_mac, sealed_response, expires_at,
                                                workspace_id, counted_bytes)
        VALUES (p_id, p_request_mac, p_sealed_response, p_expires_at, workspace,
                CASE WHEN FOUND THEN size ELSE 0 END)
        -- Only an expired response can exist: the transaction holds the lock.
        ON CONFLICT (id) DO UPDATE
            SET request_mac = excluded.request_mac, sealed_response = excluded.sealed_response,
                expires_at = excluded.expires_at,
                counted_bytes = stored.counted_bytes + excluded.counted_bytes;
    END
    $$;

-- Deletes expired responses.
CREATE FUNCTION prune_idempotency_keys(p_now timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        WITH expired AS (
            DELETE FROM idempotency_keys WHERE expires_at < pruning_time(p_now)
            RETURNING workspace_id, counted_bytes
        ), uncounted AS (
            SELECT workspace_id, sum(counted_bytes) AS bytes FROM expired GROUP BY workspace_id
        )
        UPDATE document_usage u SET bytes = u.bytes - uncounted.bytes
        FROM uncounted WHERE u.workspace_id = uncounted.workspace_id;
    END
    $$;

REVOKE ALL ON FUNCTION lock_idempotency_key, store_idempotent_response, prune_idempotency_keys
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lock_idempotency_key, store_idempotent_response, prune_idempotency_keys
    TO call2me_auth_app;
