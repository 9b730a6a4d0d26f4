-- The email outbox: emails that are stored and not sent yet.

-- The transaction that causes an email inserts it, without any secret. It is deleted once sent.
CREATE TABLE email_outbox (
    id uuid PRIMARY KEY,
    message jsonb NOT NULL,
    -- The address in lower case, by which emails are limited. An index of counts holds it.
    recipient text NOT NULL CHECK (octet_length(recipient) <= 1024),
    -- 'verification' and 'reset': links. 'account': a change of the recipient's account.
    -- 'workspace': a change in a workspace. 'invitation': an invitation to one.
    class text NOT NULL
        CHECK (class IN ('verification', 'reset', 'account', 'workspace', 'invitation')),
    created_at timestamptz NOT NULL DEFAULT database_time(),
    attempts integer NOT NULL DEFAULT 0,
    -- Also the end of the lease of the node that is sending it.
    next_attempt_at timestamptz NOT NULL DEFAULT database_time()
);
-- In the order of claims: the members of a workspace cause emails of the last two classes at will,
-- so these wait for all others.
CREATE INDEX email_outbox_claim_idx
    ON email_outbox ((class IN ('workspace', 'invitation')), next_attempt_at);

-- The emails of a class to an address within an hour. A row for each address, because the limit
-- also holds if an account is deleted and created again.
CREATE TABLE email_counts (
    recipient text NOT NULL,
    class text NOT NULL,
    -- The first email of the hour.
    since timestamptz NOT NULL,
    emails integer NOT NULL,
    PRIMARY KEY (recipient, class)
);
CREATE INDEX email_counts_since_idx ON email_counts (since);

-- The role may add emails. The functions below read and delete those of all workspaces.
GRANT INSERT (id, message, recipient, class) ON email_outbox TO call2me_auth_app;

-- Counts an email to an address. Returns false if the email must not be sent: the address has
-- received too many of its class within an hour, or it belongs to an account that has not verified
-- it. Such an address may be a stranger's, so it receives only links to verify it and to reset the
-- password. Links to reset a password and invitations have limits where they are created.
CREATE FUNCTION charge_email(p_recipient text, p_class text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        maximum CONSTANT integer :=
            CASE p_class WHEN 'verification' THEN 5 WHEN 'account' THEN 20 WHEN 'workspace' THEN 20
            END;
        hour_ago CONSTANT timestamptz := database_time() - interval '1 hour';
    BEGIN
        IF p_class IN ('account', 'workspace') AND EXISTS (
            SELECT FROM users WHERE normalized_email = p_recipient AND email_verified_at IS NULL)
        THEN
            RETURN false;
        END IF;
        IF maximum IS NULL THEN
            RETURN true;
        END IF;
        INSERT INTO email_counts AS counted VALUES (p_recipient, p_class, database_time(), 1)
        ON CONFLICT (recipient, class) DO UPDATE
            SET since = CASE WHEN counted.since > hour_ago THEN counted.since
                             ELSE excluded.since END,
                emails = CASE WHEN counted.since > hour_ago THEN counted.emails + 1 ELSE 1 END
            WHERE counted.since <= hour_ago OR counted.emails < maximum;
        RETURN FOUND;
    END
    $$;

-- Claims emails that are due. No other node claims them until `p_lease` ends. No pause is longer
-- than `p_max_pause`: an email that is to wait for longer was stored before the clock was set back,
-- and is due. Emails that must not be sent are deleted and returned with `is_dropped`. They are
-- counted at the first attempt, in the order of their addresses, so that nodes do not wait for each
-- other.
CREATE FUNCTION claim_emails(p_limit integer, p_lease interval, p_max_pause interval)
    RETURNS TABLE (id uuid, message jsonb, attempts integer, is_dropped boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    #variable_conflict use_column
    DECLARE
        due email_outbox;
    BEGIN
        FOR due IN
            WITH locked AS (
                SELECT e.* FROM email_outbox e
                WHERE e.next_attempt_at <= database_time()
                   OR e.next_attempt_at > database_time() + p_max_pause
                ORDER BY (e.class IN ('workspace', 'invitation')), e.next_attempt_at
                LIMIT p_limit FOR UPDATE SKIP LOCKED)
            SELECT * FROM locked ORDER BY recipient, class, created_at
        LOOP
            IF due.attempts = 0 AND NOT charge_email(due.recipient, due.class) THEN
                DELETE FROM email_outbox e WHERE e.id = due.id;
                RETURN QUERY SELECT due.id, due.message, due.attempts, true;
            ELSE
                RETURN QUERY
                    UPDATE email_outbox e
                    SET attempts = e.attempts + 1, next_attempt_at = database_time() + p_lease
                    WHERE e.id = due.id
                    RETURNING e.id, e.message, e.attempts, false;
            END IF;
        END LOOP;
    END
    $$;

CREATE FUNCTION postpone_email(p_id uuid, p_delay interval) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ UPDATE email_outbox SET next_attempt_at = database_time() + p_delay WHERE id = p_id $$;

CREATE FUNCTION delete_email(p_id uuid) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM email_outbox WHERE id = p_id $$;

-- Deletes emails that waited for a day, and old counts. Returns the number of the emails.
CREATE FUNCTION prune_emails() RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM email_counts WHERE since < (SELECT database_time()) - interval '1 hour';
        WITH deleted AS (
            DELETE FROM email_outbox
            WHERE created_at < (SELECT database_time()) - interval '1 day' RETURNING id)
        SELECT count(*) FROM deleted
    $$;

REVOKE ALL ON FUNCTION charge_email, claim_emails, postpone_email, delete_email, prune_emails FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_emails, postpone_email, delete_email, prune_emails
    TO call2me_auth_app;
