-- Second factors: authenticator apps (TOTP, RFC 6238) with recovery codes, and passkeys (WebAuthn).

-- The TOTP secret and the recovery codes are MACs under the factor's key, which is encrypted under
-- a key that the database does not hold. A database dump therefore contains no usable code.
CREATE TABLE totp_factors (
    user_id uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    factor_id uuid NOT NULL,
    sealed_key bytea NOT NULL CHECK (octet_length(sealed_key) = 68),
    created_at timestamptz NOT NULL,
    -- The time of the first valid code. Sign-in requires a code from then on.
    confirmed_at timestamptz,
    -- The number of wrong codes during enrollment.
    wrong_codes integer NOT NULL DEFAULT 0,
    -- The time step of the last accepted code. No code works twice.
    last_accepted_step bigint NOT NULL DEFAULT 0,
    -- A bit set: one bit for each recovery code.
    used_recovery_codes integer NOT NULL DEFAULT 0,
    -- The number of times that the recovery codes were regenerated. Each set is derived from it.
    recovery_code_generation integer NOT NULL DEFAULT 0
);

-- Sign-ins with a correct password that wait for a second factor.
CREATE TABLE mfa_challenges (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- The workspace that the sign-in requested.
    workspace_id uuid,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    wrong_codes integer NOT NULL DEFAULT 0,
    used_at timestamptz
);
CREATE INDEX mfa_challenges_user_id_idx ON mfa_challenges (user_id, created_at);

CREATE TABLE passkeys (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- The id that the passkey device chose for the passkey, unique among all users.
    credential_id bytea NOT NULL CHECK (octet_length(credential_id) BETWEEN 1 AND 1023),
    -- In COSE encoding.
    public_key bytea NOT NULL CHECK (octet_length(public_key) <= 2048),
    -- The signature counter at the last use. A copied passkey would count separately.
    sign_count bigint NOT NULL,
    backup_eligible boolean NOT NULL,
    name text NOT NULL,
    created_at timestamptz NOT NULL,
    last_used_at timestamptz,
    CONSTRAINT passkeys_credential_id_key UNIQUE (credential_id)
);
CREATE INDEX passkeys_user_idx ON passkeys (user_id, id);

-- Challenges are derived from their ids, which contain their time. Only used ones are stored.
CREATE TABLE used_webauthn_challenges (
    id uuid PRIMARY KEY
);

------------------------------------------------------------------------------------------------
-- Rights of the role

GRANT SELECT, INSERT, UPDATE, DELETE ON totp_factors TO call2me_auth_app;
ALTER TABLE totp_factors ENABLE ROW LEVEL SECURITY;
CREATE POLICY totp_factors_by_user ON totp_factors TO call2me_auth_app
    USING (user_id = (SELECT current_user_id())) WITH CHECK (user_id = (SELECT current_user_id()));

GRANT SELECT, INSERT, UPDATE (wrong_codes, used_at) ON mfa_challenges TO call2me_auth_app;
ALTER TABLE mfa_challenges ENABLE ROW LEVEL SECURITY;
CREATE POLICY mfa_challenges_by_user ON mfa_challenges TO call2me_auth_app
    USING (user_id = (SELECT current_user_id())) WITH CHECK (user_id = (SELECT current_user_id()));

GRANT SELECT, INSERT, DELETE, UPDATE (sign_count, last_used_at) ON passkeys TO call2me_auth_app;
ALTER TABLE passkeys ENABLE ROW LEVEL SECURITY;
CREATE POLICY passkeys_by_user ON passkeys TO call2me_auth_app
    USING (user_id = (SELECT current_user_id())) WITH CHECK (user_id = (SELECT current_user_id()));

------------------------------------------------------------------------------------------------
-- Functions

-- Returns true if a second factor is required and the user has no authenticator app. For use in
-- SECURITY DEFINER functions: the role must not ask this about other users.
CREATE FUNCTION lacks_second_factor(p_is_required boolean, p_user_id uuid) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
        SELECT p_is_required AND NOT EXISTS (
            SELECT FROM totp_factors WHERE user_id = p_user_id AND confirmed_at IS NOT NULL)
    $$;

-- Returns the user of a challenge, before the caller is authenticated.
CREATE FUNCTION find_mfa_challenge_user(p_id uuid) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT user_id FROM mfa_challenges WHERE id = p_id $$;

-- Deletes challenges that are older than a day. Their wrong codes count for an hour.
CREATE FUNCTION prune_mfa_challenges(p_now timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM mfa_challenges WHERE created_at < pruning_time(p_now) - interval '1 day'
    $$;

-- Returns the user of a passkey, before the caller is authenticated.
CREATE FUNCTION find_passkey_user(p_credential_id bytea) RETURNS uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        RETURN (SELECT user_id FROM passkeys WHERE credential_id = p_credential_id);
    END
    $$;

-- Marks a challenge as used. Returns false if it was used before.
CREATE FUNCTION use_webauthn_challenge(p_id uuid) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        INSERT INTO used_webauthn_challenges VALUES (p_id) ON CONFLICT DO NOTHING;
        RETURN FOUND;
    END
    $$;

-- Deletes challenges that are older than a day, which is longer than they are valid.
CREATE FUNCTION prune_used_webauthn_challenges(p_now timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM used_webauthn_challenges
        WHERE id < uuidv7_lower_bound(pruning_time(p_now) - interval '1 day')
    $$;

REVOKE ALL ON FUNCTION lacks_second_factor, find_mfa_challenge_user, prune_mfa_challenges,
    find_passkey_user, use_webauthn_challenge, prune_used_webauthn_challenges FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_mfa_challenge_user, prune_mfa_challenges, find_passkey_user,
    use_webauthn_challenge, prune_used_webauthn_challenges TO call2me_auth_app;
