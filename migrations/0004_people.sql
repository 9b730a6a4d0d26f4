-- What people need besides a password: mail, one-time links, sessions that move.

ALTER TABLE users ADD COLUMN email_verified_at timestamptz;
GRANT SELECT (email_verified_at), UPDATE (email_verified_at) ON users TO call2me_auth_app;

-- A session moves when its person switches to another workspace.
GRANT UPDATE (workspace_id) ON sessions TO call2me_auth_app;

------------------------------------------------------------------------------------------------
-- Links that work once

-- The token in a link is a MAC over purpose and id under a key that the database does not hold, so
-- that a dump of the database opens nothing.
CREATE TABLE one_time_tokens (
    id uuid PRIMARY KEY,
    purpose text NOT NULL CHECK (purpose IN ('reset_password', 'verify_email')),
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- The address that it was mailed to: it proves nothing of another.
    email_key text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);
CREATE INDEX one_time_tokens_user_id_idx ON one_time_tokens (user_id);

GRANT SELECT, INSERT, UPDATE (used_at) ON one_time_tokens TO call2me_auth_app;
ALTER TABLE one_time_tokens ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_time_tokens_own ON one_time_tokens TO call2me_auth_app
    USING (user_id = current_person()) WITH CHECK (user_id = current_person());

CREATE FUNCTION find_one_time_token(token_id uuid)
    RETURNS TABLE (user_id uuid, purpose text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT t.user_id, t.purpose FROM one_time_tokens t WHERE t.id = token_id $$;

-- A link for whoever has the address; nothing where nobody has, or has been mailed enough of them: whom
-- strangers ask for must not be buried in mail.
CREATE FUNCTION start_password_reset(
    token_id uuid, address text, created timestamptz, expires timestamptz
) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        INSERT INTO one_time_tokens (id, purpose, user_id, email_key, created_at, expires_at)
        SELECT token_id, 'reset_password', u.id, u.email_key, created, expires
        FROM users u WHERE email_key = address AND (
            SELECT count(*) FROM one_time_tokens t
            WHERE t.user_id = u.id AND t.purpose = 'reset_password' AND t.id <> token_id
              AND t.created_at > created - interval '1 hour') < 5
        -- The same mail again: its link works from when it is sent.
        ON CONFLICT (id) DO UPDATE
            SET created_at = excluded.created_at, expires_at = excluded.expires_at
            WHERE one_time_tokens.used_at IS NULL;
        RETURN FOUND;
    END
    $$;

-- What has expired is of no use a week later, not even to explain why a link does not work.
CREATE FUNCTION prune_one_time_tokens(moment timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM one_time_tokens WHERE expires_at < moment - interval '7 days' $$;

------------------------------------------------------------------------------------------------
-- Mail

-- Mails to be sent, put here by the transaction that causes them: what to write and to whom, without
-- any secret. Gone once sent.
CREATE TABLE mail_outbox (
    id uuid PRIMARY KEY,
    mail jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0,
    -- Also until when whoever is sending it has it to itself.
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX mail_outbox_next_attempt_at_idx ON mail_outbox (next_attempt_at);

GRANT INSERT ON mail_outbox TO call2me_auth_app;

CREATE FUNCTION claim_mails(wanted integer, lease interval)
    RETURNS TABLE (id uuid, mail jsonb, attempts integer)
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        UPDATE mail_outbox m
        SET attempts = m.attempts + 1, next_attempt_at = clock_timestamp() + lease
        WHERE m.id IN (
            SELECT due.id FROM mail_outbox due WHERE due.next_attempt_at <= clock_timestamp()
            ORDER BY due.next_attempt_at LIMIT wanted FOR UPDATE SKIP LOCKED)
        RETURNING m.id, m.mail, m.attempts
    $$;

CREATE FUNCTION put_mail_off(mail_id uuid, pause interval) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ UPDATE mail_outbox SET next_attempt_at = clock_timestamp() + pause WHERE id = mail_id $$;

CREATE FUNCTION remove_mail(mail_id uuid) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM mail_outbox WHERE id = mail_id $$;

-- Nobody waits for yesterday's mail.
CREATE FUNCTION prune_mails(older_than interval) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        WITH gone AS (
            DELETE FROM mail_outbox WHERE created_at < clock_timestamp() - older_than RETURNING id)
        SELECT count(*) FROM gone
    $$;

------------------------------------------------------------------------------------------------
-- Passwords

-- Of the person of the transaction, if the password is still the one that was verified: a sign-in that
-- hashes an old password anew must not undo a change.
CREATE FUNCTION replace_password_hash(old_hash text, new_hash text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        UPDATE users SET password_hash = new_hash
        WHERE id = current_person() AND password_hash = old_hash;
        RETURN FOUND;
    END
    $$;

REVOKE ALL ON FUNCTION find_one_time_token, start_password_reset, prune_one_time_tokens,
    claim_mails, put_mail_off, remove_mail, prune_mails, replace_password_hash FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_one_time_token, start_password_reset, prune_one_time_tokens,
    claim_mails, put_mail_off, remove_mail, prune_mails, replace_password_hash TO call2me_auth_app;
