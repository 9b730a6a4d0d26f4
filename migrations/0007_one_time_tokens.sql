-- One-time tokens of mailed links, for password reset and email verification.

-- The token in a link is a MAC of account, address, purpose and id, under a key that the database
-- does not hold. A database dump therefore contains no usable token, and a row that injected SQL
-- binds to the id of a token does not make it valid for another account.
CREATE TABLE one_time_tokens (
    id uuid PRIMARY KEY,
    purpose text NOT NULL CHECK (purpose IN ('reset_password', 'verify_email')),
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- The address in lower case that the link was sent to. The link proves control of this
    -- address only.
    normalized_email text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);
CREATE INDEX one_time_tokens_user_id_idx ON one_time_tokens (user_id);

GRANT SELECT, INSERT, UPDATE (used_at) ON one_time_tokens TO call2me_auth_app;
ALTER TABLE one_time_tokens ENABLE ROW LEVEL SECURITY;
CREATE POLICY one_time_tokens_by_user ON one_time_tokens TO call2me_auth_app
    USING (user_id = (SELECT current_user_id())) WITH CHECK (user_id = (SELECT current_user_id()));

-- Returns the user and the address that a token is bound to, before the caller is authenticated.
-- The link may be sent to no other address.
CREATE FUNCTION find_one_time_token(p_id uuid, p_purpose text)
    RETURNS TABLE (user_id uuid, normalized_email text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT t.user_id, t.normalized_email FROM one_time_tokens t
        WHERE t.id = p_id AND t.purpose = p_purpose
    $$;

-- Stores a token for the account with an address, and returns the account. Returns NULL if there is
-- none, if it has `p_max_recent` tokens that were created after `p_recent_since`, if the token was
-- used, or if the id is that of another token. The limit protects an address from unwanted emails.
CREATE FUNCTION start_password_reset(
    p_id uuid, p_normalized_email text, p_created_at timestamptz, p_expires_at timestamptz,
    p_recent_since timestamptz, p_max_recent bigint
) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        account uuid;
    BEGIN
        INSERT INTO one_time_tokens (id, purpose, user_id, normalized_email, created_at, expires_at)
        SELECT p_id, 'reset_password', u.id, u.normalized_email, p_created_at, p_expires_at
        FROM users u WHERE normalized_email = p_normalized_email AND (
            SELECT count(*) FROM one_time_tokens t
            WHERE t.user_id = u.id AND t.purpose = 'reset_password' AND t.id <> p_id
              AND t.created_at > p_recent_since) < p_max_recent
        -- The email is sent again: the lifetime of its link starts again. A row of another user,
        -- purpose or address is not that of this email, and its link must not be sent to it.
        ON CONFLICT (id) DO UPDATE
            SET created_at = excluded.created_at, expires_at = excluded.expires_at
            WHERE one_time_tokens.used_at IS NULL
              AND one_time_tokens.user_id = excluded.user_id
              AND one_time_tokens.purpose = excluded.purpose
              AND one_time_tokens.normalized_email = excluded.normalized_email
        RETURNING one_time_tokens.user_id INTO account;
        RETURN account;
    END
    $$;

-- Deletes tokens that expired more than seven days ago.
CREATE FUNCTION prune_one_time_tokens(p_now timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM one_time_tokens WHERE expires_at < pruning_time(p_now) - interval '7 days'
    $$;

REVOKE ALL ON FUNCTION find_one_time_token, start_password_reset, prune_one_time_tokens FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_one_time_token, start_password_reset, prune_one_time_tokens
    TO call2me_auth_app;
