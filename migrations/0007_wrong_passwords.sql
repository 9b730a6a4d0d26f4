-- How often somebody was wrong about a password.

-- By account and by who guesses, so that no stranger keeps its owner out. The account by the digest of
-- an address, whether or not anybody has it: what people type in its place is nobody's business.
CREATE TABLE wrong_passwords (
    account bytea NOT NULL CHECK (octet_length(account) = 32),
    subnet inet NOT NULL,
    -- Since the last right one, or an hour in peace.
    times integer NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (account, subnet)
);
CREATE INDEX wrong_passwords_last_at_idx ON wrong_passwords (last_at);

-- How many seconds are to pass until the next attempt; nothing where none was wrong. Five are free; then
-- each waits twice as long as the one before, up to a quarter of an hour.
CREATE FUNCTION password_pause(of_account bytea, by_subnet inet, moment timestamptz)
    RETURNS double precision
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT CASE WHEN w.times < 5 THEN 0
                    ELSE greatest(0, least(900, 1 << least(w.times - 5, 10))
                                     - extract(epoch FROM moment - w.last_at)::double precision) END
        FROM wrong_passwords w
        WHERE w.account = of_account AND w.subnet = by_subnet
          AND w.last_at > moment - interval '1 hour'
    $$;

CREATE FUNCTION count_wrong_password(of_account bytea, by_subnet inet, moment timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        -- Should a crash take the count back, some guesses are free.
        PERFORM set_config('synchronous_commit', 'off', true);
        INSERT INTO wrong_passwords AS w (account, subnet, times, last_at)
        VALUES (of_account, by_subnet, 1, moment)
        ON CONFLICT (account, subnet) DO UPDATE
            SET times = CASE WHEN w.last_at <= moment - interval '1 hour' THEN 1
                             ELSE least(w.times + 1, 1000) END,
                last_at = greatest(w.last_at, moment);
    END
    $$;

-- The password was right.
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
