-- Counts of wrong passwords, for sign-in throttling.

-- The service counts by account and by the client's subnet, so that a stranger cannot lock the
-- owner out. The role has no rights on the table, so it cannot list the accounts under attack.
CREATE TABLE sign_in_failures (
    -- SHA-256 of the entered address, whether or not such an account exists. Addresses are not
    -- stored: users enter other secrets in this field by mistake.
    account_digest bytea NOT NULL CHECK (octet_length(account_digest) = 32),
    subnet inet NOT NULL,
    failed_attempts integer NOT NULL,
    last_failed_at timestamptz NOT NULL,
    PRIMARY KEY (account_digest, subnet)
);
CREATE INDEX sign_in_failures_last_failed_at_idx ON sign_in_failures (last_failed_at);

CREATE FUNCTION sign_in_pause(p_account_digest bytea, p_subnet inet, p_now timestamptz)
    RETURNS double precision
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    DECLARE
        failures sign_in_failures;
    BEGIN
        SELECT * INTO failures FROM sign_in_failures f
        WHERE f.account_digest = p_account_digest AND f.subnet = p_subnet
          AND f.last_failed_at > p_now - interval '1 hour';
        IF NOT FOUND THEN
            RETURN NULL;
        ELSIF failures.failed_attempts < 5 THEN
            RETURN 0;
        END IF;
        RETURN greatest(0, least(900, 1 << least(failures.failed_attempts - 5, 10))
                           - extract(epoch FROM p_now - failures.last_failed_at)::double precision);
    END
    $$;

CREATE FUNCTION record_sign_in_failure(p_account_digest bytea, p_subnet inet, p_now timestamptz)
    RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        -- A crash may lose the count of the last attempts, which is acceptable.
        PERFORM set_config('synchronous_commit', 'off', true);
        INSERT INTO sign_in_failures AS f (account_digest, subnet, failed_attempts, last_failed_at)
        VALUES (p_account_digest, p_subnet, 1, p_now)
        ON CONFLICT (account_digest, subnet) DO UPDATE
            SET failed_attempts = CASE WHEN f.last_failed_at <= p_now - interval '1 hour' THEN 1
                                       ELSE least(f.failed_attempts + 1, 1000) END,
                last_failed_at = greatest(f.last_failed_at, p_now);
    END
    $$;

CREATE FUNCTION reset_sign_in_failures(p_account_digest bytea, p_subnet inet) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM sign_in_failures WHERE account_digest = p_account_digest AND subnet = p_subnet
    $$;

CREATE FUNCTION prune_sign_in_failures(p_now timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM sign_in_failures WHERE last_failed_at < p_now - interval '1 hour' $$;

REVOKE ALL ON FUNCTION sign_in_pause, record_sign_in_failure, reset_sign_in_failures,
    prune_sign_in_failures FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sign_in_pause, record_sign_in_failure, reset_sign_in_failures,
    prune_sign_in_failures TO call2me_auth_app;
