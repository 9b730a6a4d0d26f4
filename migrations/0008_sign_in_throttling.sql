-- Counts of wrong passwords, for sign-in throttling. The policy, such as the pause that they cause,
-- is in `src/model/sign_in_throttling.rs`.

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

-- Counts an attempt before its password is verified. Returns false, and counts nothing, if the
-- counter is not `p_observed` any more: the caller decided on another one, and decides again. So of
-- concurrent attempts on several nodes, no more are verified than the policy allows. A counter is 0
-- if its last attempt was not after `p_expired_until`.
CREATE FUNCTION reserve_sign_in_attempt(
    p_account_digest bytea, p_subnet inet, p_observed integer, p_now timestamptz,
    p_expired_until timestamptz
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        -- A crash may lose the count of the last attempts, which is acceptable.
        PERFORM set_config('synchronous_commit', 'off', true);
        INSERT INTO sign_in_failures AS f (account_digest, subnet, failed_attempts, last_failed_at)
        VALUES (p_account_digest, p_subnet, 1, p_now)
        ON CONFLICT (account_digest, subnet) DO UPDATE
            SET failed_attempts = p_observed + 1, last_failed_at = p_now
            WHERE CASE WHEN f.last_failed_at <= p_expired_until THEN 0 ELSE f.failed_attempts END
                  = p_observed;
        RETURN FOUND;
    END
    $$;

-- Wrong passwords from networks that the account never signed in from, by account.
CREATE TABLE foreign_sign_in_failures (
    account_digest bytea PRIMARY KEY CHECK (octet_length(account_digest) = 32),
    failed_attempts integer NOT NULL,
    last_failed_at timestamptz NOT NULL,
    -- The last time at which the owner was notified.
    notified_at timestamptz
);
CREATE INDEX foreign_sign_in_failures_last_failed_at_idx
    ON foreign_sign_in_failures (last_failed_at);

-- Counts a wrong password from a foreign network. Returns true if the owner is to be notified: of
-- `p_threshold` attempts or more, if the last notification was before `p_notified_before`.
CREATE FUNCTION record_foreign_sign_in_failure(
    p_account_digest bytea, p_now timestamptz, p_expired_until timestamptz, p_threshold integer,
    p_notified_before timestamptz
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM set_config('synchronous_commit', 'off', true);
        INSERT INTO foreign_sign_in_failures AS f (account_digest, failed_attempts, last_failed_at)
        VALUES (p_account_digest, 1, p_now)
        ON CONFLICT (account_digest) DO UPDATE
            SET failed_attempts = CASE WHEN f.last_failed_at <= p_expired_until THEN 1
                                       ELSE f.failed_attempts + 1 END,
                last_failed_at = p_now;
        UPDATE foreign_sign_in_failures f SET notified_at = p_now
        WHERE f.account_digest = p_account_digest AND f.failed_attempts >= p_threshold
          AND (f.notified_at IS NULL OR f.notified_at < p_notified_before);
        RETURN FOUND;
    END
    $$;

-- Returns true if one of the user's newest 100 sessions started in this network.
CREATE FUNCTION has_signed_in_from(p_user_id uuid, p_network inet) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        RETURN EXISTS (
            SELECT FROM (SELECT ip FROM sessions WHERE user_id = p_user_id
                         ORDER BY id DESC LIMIT 100) newest
            WHERE ip <<= p_network);
    END
    $$;

CREATE FUNCTION reset_sign_in_failures(p_account_digest bytea, p_subnet inet) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM sign_in_failures WHERE account_digest = p_account_digest AND subnet = p_subnet
    $$;

-- Deletes counts that no longer cause a pause: after `RESET_AFTER`. The time of a notification is
-- kept for `NOTIFICATION_INTERVAL`.
CREATE FUNCTION prune_sign_in_failures(p_now timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM sign_in_failures
        WHERE last_failed_at <= pruning_time(p_now) - interval '1 hour';
        DELETE FROM foreign_sign_in_failures
        WHERE last_failed_at <= pruning_time(p_now) - interval '1 hour'
          AND (notified_at IS NULL OR notified_at < pruning_time(p_now) - interval '1 day');
    $$;

REVOKE ALL ON FUNCTION find_sign_in_failures, reserve_sign_in_attempt,
    record_foreign_sign_in_failure, has_signed_in_from, reset_sign_in_failures,
    prune_sign_in_failures FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_sign_in_failures, reserve_sign_in_attempt,
    record_foreign_sign_in_failure, has_signed_in_from, reset_sign_in_failures,
    prune_sign_in_failures TO call2me_auth_app;
