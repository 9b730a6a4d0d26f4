-- The email outbox: emails that are stored and not sent yet.

-- The transaction that causes an email inserts it, without any secret. It is deleted once sent.
CREATE TABLE email_outbox (
    id uuid PRIMARY KEY,
    message jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0,
    -- Also the end of the lease of the node that is sending it.
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX email_outbox_next_attempt_at_idx ON email_outbox (next_attempt_at);

-- The role may add emails. The functions below read and delete those of all workspaces.
GRANT INSERT ON email_outbox TO call2me_auth_app;

-- Claims emails that are due. No other node claims them until `p_lease` ends.
CREATE FUNCTION claim_emails(p_limit integer, p_lease interval)
    RETURNS TABLE (id uuid, message jsonb, attempts integer)
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        UPDATE email_outbox e
        SET attempts = e.attempts + 1, next_attempt_at = clock_timestamp() + p_lease
        WHERE e.id IN (
            SELECT due.id FROM email_outbox due WHERE due.next_attempt_at <= clock_timestamp()
            ORDER BY due.next_attempt_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
        RETURNING e.id, e.message, e.attempts
    $$;

CREATE FUNCTION postpone_email(p_id uuid, p_delay interval) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ UPDATE email_outbox SET next_attempt_at = clock_timestamp() + p_delay WHERE id = p_id $$;

CREATE FUNCTION delete_email(p_id uuid) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM email_outbox WHERE id = p_id $$;

-- Deletes emails that waited for too long. Returns their number.
CREATE FUNCTION prune_emails(p_max_age interval) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        WITH deleted AS (
            DELETE FROM email_outbox WHERE created_at < clock_timestamp() - p_max_age RETURNING id)
        SELECT count(*) FROM deleted
    $$;

REVOKE ALL ON FUNCTION claim_emails, postpone_email, delete_email, prune_emails FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_emails, postpone_email, delete_email, prune_emails
    TO call2me_auth_app;
