-- Counts of wrong passwords, for sign-in throttling. The pause is decided in
-- `src/model/sign_in_throttling.rs`.

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

-- Returns the counter of an account and subnet. See `find_account_by_email` for its kind of plan.
CREATE FUNCTION find_sign_in_failures(p_account_digest bytea, p_subnet inet)
    RETURNS TABLE (failed_attempts integer, last_failed_at timestamptz)
    LANGUAGE plpgsql STABLE ROWS 1 SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        RETURN QUERY
            SELECT f.failed_attempts, f.last_failed_at FROM sign_in_failures f
            WHERE f.account_digest = p_account_digest AND f.subnet = p_subnet;
    END
    $$;

-- Counts a failed attempt, in one statement, so that concurrent attempts on several nodes all
-- count. The counter starts again at 1 if the last failed attempt was not after `p_expired_until`.
CREATE FUNCTION record_sign_in_failure(
    p_account_digest bytea, p_subnet inet, p_now timestamptz, p_expired_until timestamptz
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        -- A crash may lose the count of the last attempts, which is acceptable.
        PERFORM set_config('synchronous_commit', 'off', true);
        INSERT INTO sign_in_failures AS f (account_digest, subnet, failed_attempts, last_failed_at)
        VALUES (p_account_digest, p_subnet, 1, p_now)
        ON CONFLICT (account_digest, subnet) DO UPDATE
            SET failed_attempts = CASE WHEN f.last_failed_at <= p_expired_until THEN 1
                                       ELSE f.failed_attempts + 1 END,
                last_failed_at = greatest(f.last_failed_at, p_now);
    END
    $$;

CREATE FUNCTION reset_sign_in_failures(p_account_digest bytea, p_subnet inet) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM sign_in_failures WHERE account_digest = p_account_digest AND subnet = p_subnet
    $$;

CREATE FUNCTION prune_sign_in_failures(p_expired_until timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM sign_in_failures WHERE last_failed_at <= p_expired_until $$;

REVOKE ALL ON FUNCTION find_sign_in_failures, record_sign_in_failure, reset_sign_in_failures,
    prune_sign_in_failures FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_sign_in_failures, record_sign_in_failure, reset_sign_in_failures,
    prune_sign_in_failures TO call2me_auth_app;
