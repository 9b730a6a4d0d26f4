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
    expires_at timestamptz NOT NULL
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
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        INSERT INTO idempotency_keys (id, request_mac, sealed_response, expires_at)
        VALUES (p_id, p_request_mac, p_sealed_response, p_expires_at)
        -- Only an expired response can exist: the transaction holds the lock.
        ON CONFLICT (id) DO UPDATE
            SET request_mac = excluded.request_mac, sealed_response = excluded.sealed_response,
                expires_at = excluded.expires_at
    $$;

-- Deletes expired responses.
CREATE FUNCTION prune_idempotency_keys(p_now timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM idempotency_keys WHERE expires_at < pruning_time(p_now) $$;

REVOKE ALL ON FUNCTION lock_idempotency_key, store_idempotent_response, prune_idempotency_keys
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lock_idempotency_key, store_idempotent_response, prune_idempotency_keys
    TO call2me_auth_app;
