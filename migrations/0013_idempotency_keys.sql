-- Stored responses to creating requests, so that a retry does nothing twice.

-- The role has no rights on the table. A caller of the functions below needs the id of a row, a MAC
-- that only the service can compute.
CREATE TABLE kept_answers (
    -- A MAC of the caller, the route and the Idempotency-Key.
    id bytea PRIMARY KEY CHECK (octet_length(id) = 32),
    -- A MAC of the request's body.
    request bytea NOT NULL CHECK (octet_length(request) = 32),
    -- Encrypted under a key that is derived from the Idempotency-Key.
    answer bytea NOT NULL,
    kept_until timestamptz NOT NULL
);
CREATE INDEX kept_answers_kept_until_idx ON kept_answers (kept_until);

-- Locks an idempotency key for this transaction and returns the stored response, if there is one.
-- `is_ours` is false if another transaction holds the lock.
CREATE FUNCTION find_answer(wanted bytea, moment timestamptz)
    RETURNS TABLE (is_ours boolean, request bytea, answer bytea)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        is_ours := pg_try_advisory_xact_lock(('x' || encode(substring(wanted FOR 8), 'hex'))::bit(64)::bigint);
        IF is_ours THEN
            -- A separate statement sees all that was committed before it got the lock.
            SELECT kept.request, kept.answer INTO request, answer
            FROM kept_answers kept WHERE kept.id = wanted AND kept.kept_until > moment;
        END IF;
        RETURN NEXT;
    END
    $$;

-- Stores a response, in the transaction of the work.
CREATE FUNCTION keep_answer(wanted bytea, asked bytea, given bytea, until timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        INSERT INTO kept_answers (id, request, answer, kept_until) VALUES (wanted, asked, given, until)
        -- Only an expired response can exist: the transaction holds the lock.
        ON CONFLICT (id) DO UPDATE SET request = excluded.request, answer = excluded.answer,
                                       kept_until = excluded.kept_until
    $$;

CREATE FUNCTION prune_answers(moment timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM kept_answers WHERE kept_until < moment $$;

REVOKE ALL ON FUNCTION find_answer, keep_answer, prune_answers FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_answer, keep_answer, prune_answers TO call2me_auth_app;
