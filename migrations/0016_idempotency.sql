-- What creating requests were answered, so that a retry does nothing twice.

-- Read and written by the functions below alone: whoever asks names a row by a MAC that only the service
-- can make.
CREATE TABLE kept_answers (
    -- A MAC over who asked, how and where, and the Idempotency-Key.
    id bytea PRIMARY KEY CHECK (octet_length(id) = 32),
    -- A MAC over the request's body.
    request bytea NOT NULL CHECK (octet_length(request) = 32),
    -- Sealed under a key that takes the Idempotency-Key.
    answer bytea NOT NULL,
    kept_until timestamptz NOT NULL
);
CREATE INDEX kept_answers_kept_until_idx ON kept_answers (kept_until);

-- What was answered, if it was; `is_ours` is false while another transaction works on the same.
CREATE FUNCTION find_answer(wanted bytea, moment timestamptz)
    RETURNS TABLE (is_ours boolean, request bytea, answer bytea)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        is_ours := pg_try_advisory_xact_lock(('x' || encode(substring(wanted FOR 8), 'hex'))::bit(64)::bigint);
        IF is_ours THEN
            -- A statement of its own: it sees what was committed until the lock was had.
            SELECT kept.request, kept.answer INTO request, answer
            FROM kept_answers kept WHERE kept.id = wanted AND kept.kept_until > moment;
        END IF;
        RETURN NEXT;
    END
    $$;

-- Keeps an answer, in the transaction of the work that it tells of.
CREATE FUNCTION keep_answer(wanted bytea, asked bytea, given bytea, until timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        INSERT INTO kept_answers (id, request, answer, kept_until) VALUES (wanted, asked, given, until)
        -- One that is over, or nobody would be here.
        ON CONFLICT (id) DO UPDATE SET request = excluded.request, answer = excluded.answer,
                                       kept_until = excluded.kept_until
    $$;

CREATE FUNCTION prune_answers(moment timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM kept_answers WHERE kept_until < moment $$;

REVOKE ALL ON kept_answers FROM PUBLIC;
REVOKE ALL ON FUNCTION find_answer, keep_answer, prune_answers FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_answer, keep_answer, prune_answers TO call2me_auth_app;
