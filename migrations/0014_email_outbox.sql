-- The email outbox: emails that are stored and not sent yet.

-- The transaction that causes an email inserts it, without any secret. It is deleted once sent.
CREATE TABLE mail_outbox (
    id uuid PRIMARY KEY,
    mail jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0,
    -- Also the end of the lease of the node that is sending it.
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX mail_outbox_next_attempt_at_idx ON mail_outbox (next_attempt_at);

-- The role may add emails. The functions below read and delete those of all workspaces.
GRANT INSERT ON mail_outbox TO call2me_auth_app;

-- Claims emails that are due. No other node claims them until `lease` ends.
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

-- Deletes emails that waited for too long. Returns their number.
CREATE FUNCTION prune_mails(older_than interval) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        WITH gone AS (
            DELETE FROM mail_outbox WHERE created_at < clock_timestamp() - older_than RETURNING id)
        SELECT count(*) FROM gone
    $$;

REVOKE ALL ON FUNCTION claim_mails, put_mail_off, remove_mail, prune_mails FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_mails, put_mail_off, remove_mail, prune_mails TO call2me_auth_app;
