-- What a sign-in asks costs less: plans are kept, and statements are few.

-- In PL/pgSQL, which keeps plans for each connection; a function in SQL is planned at each call, which took
-- ten times as long as the work. And one plan from the first call on: left to itself PostgreSQL makes five to
-- compare, at half a millisecond each.
CREATE OR REPLACE FUNCTION find_sign_in(address text)
    RETURNS TABLE (user_id uuid, email text, full_name text, password_hash text, last_workspace_id uuid)
    LANGUAGE plpgsql STABLE ROWS 1 SECURITY DEFINER SET search_path = public, pg_temp
    SET plan_cache_mode = force_generic_plan
    AS $$
    BEGIN
        RETURN QUERY
            SELECT u.id, u.email, u.full_name, u.password_hash, u.last_workspace_id
            FROM users u WHERE u.email_key = address;
    END
    $$;

CREATE OR REPLACE FUNCTION password_pause(of_account bytea, by_subnet inet, moment timestamptz)
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

-- One index instead of two: ids grow with time.
DROP INDEX sessions_user_id_idx;
DROP INDEX sessions_newest_idx;
CREATE INDEX sessions_user_idx ON sessions (user_id, id DESC);

-- Makes the transaction of a person one of a workspace too, where the person is from now on; answers whether
-- they come from a network, or with a client but for its version, unlike those of their newest sessions,
-- ended or not. Nothing is new about the first session of all.
CREATE FUNCTION enter_workspace(workspace uuid, network inet, client text) RETURNS boolean
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan
    AS $$
    DECLARE
        person CONSTANT uuid := current_person();
        like_client CONSTANT text := regexp_replace(coalesce(client, ''), '[0-9.]+', '', 'g');
    BEGIN
        PERFORM set_config('call2me.workspace_id', workspace::text, true);
        UPDATE users SET last_workspace_id = workspace
        WHERE id = person AND last_workspace_id IS DISTINCT FROM workspace;
        IF NOT EXISTS (SELECT FROM sessions WHERE user_id = person) THEN
            RETURN false;
        END IF;
        RETURN NOT (
            EXISTS (
                SELECT FROM (SELECT ip FROM sessions WHERE user_id = person
                             ORDER BY id DESC LIMIT 100) newest
                WHERE ip <<= network)
            AND EXISTS (
                SELECT FROM (SELECT user_agent FROM sessions WHERE user_id = person
                             ORDER BY id DESC LIMIT 100) newest
                WHERE regexp_replace(coalesce(user_agent, ''), '[0-9.]+', '', 'g') = like_client));
    END
    $$;
REVOKE ALL ON FUNCTION enter_workspace FROM PUBLIC;
GRANT EXECUTE ON FUNCTION enter_workspace TO call2me_auth_app;

ALTER FUNCTION pin_password_hash SET plan_cache_mode = force_generic_plan;
