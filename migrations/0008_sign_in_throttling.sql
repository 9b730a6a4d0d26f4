-- Counts of wrong passwords, for sign-in throttling.

-- The service counts by account and by the client's subnet, so that a stranger cannot lock the owner
-- out. The role has no rights on the table, so it cannot list the accounts under attack.
CREATE TABLE wrong_passwords (
    -- SHA-256 of the entered address, whether or not such an account exists. Addresses are not
    -- stored: users enter other secrets in this field by mistake.
    account bytea NOT NULL CHECK (octet_length(account) = 32),
    subnet inet NOT NULL,
    times integer NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (account, subnet)
);
CREATE INDEX wrong_passwords_last_at_idx ON wrong_passwords (last_at);

CREATE FUNCTION password_pause(of_account bytea, by_subnet inet, moment timestamptz)
    RETURNS double precision
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    DECLARE
        wrong wrong_passwords;
    BEGIN
        SELECT * INTO wrong FROM wrong_passwords w
        WHERE w.account = of_account AND w.subnet = by_subnet
          AND w.last_at > moment - interval '1 hour';
        IF NOT FOUND THEN
            RETURN NULL;
        ELSIF wrong.times < 5 THEN
            RETURN 0;
        END IF;
        RETURN greatest(0, least(900, 1 << least(wrong.times - 5, 10))
                               - extract(epoch FROM moment - wrong.last_at)::double precision);
    END
    $$;

CREATE FUNCTION count_wrong_password(of_account bytea, by_subnet inet, moment timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        -- A crash may lose the count of the last attempts, which is acceptable.
        PERFORM set_config('synchronous_commit', 'off', true);
        INSERT INTO wrong_passwords AS w (account, subnet, times, last_at)
        VALUES (of_account, by_subnet, 1, moment)
        ON CONFLICT (account, subnet) DO UPDATE
            SET times = CASE WHEN w.last_at <= moment - interval '1 hour' THEN 1
                             ELSE least(w.times + 1, 1000) END,
                last_at = greatest(w.last_at, moment);
    END
    $$;

CREATE FUNCTION forget_wrong_passwords(of_account bytea, by_subnet inet) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM wrong_passwords WHERE account = of_account AND subnet = by_subnet $$;

CREATE FUNCTION prune_wrong_passwords(moment timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM wrong_passwords WHERE last_at < moment - interval '1 hour' $$;

REVOKE ALL ON FUNCTION password_pause, count_wrong_password, forget_wrong_passwords,
    prune_wrong_passwords FROM PUBLIC;
GRANT EXECUTE ON FUNCTION password_pause, count_wrong_password, forget_wrong_passwords,
    prune_wrong_passwords TO call2me_auth_app;
