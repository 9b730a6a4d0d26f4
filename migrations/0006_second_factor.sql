-- A second factor: codes of an authenticator (TOTP, RFC 6238), and recovery codes.

-- The secret and the recovery codes are MACs over the factor's id under a key that the database does
-- not hold: a dump of it makes no code.
CREATE TABLE totp_factors (
    user_id uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    factor_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    -- When the person showed a first code. Until then it is asked of nobody.
    confirmed_at timestamptz,
    -- At that first code.
    wrong_codes integer NOT NULL DEFAULT 0,
    -- The step of the last code that was accepted: no code works twice.
    last_step bigint NOT NULL DEFAULT 0,
    -- A bit for each recovery code.
    used_recovery_codes integer NOT NULL DEFAULT 0
);

-- Sign-ins whose password was right.
CREATE TABLE mfa_challenges (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- The workspace that was asked for.
    workspace_id uuid,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    wrong_codes integer NOT NULL DEFAULT 0,
    used_at timestamptz
);
CREATE INDEX mfa_challenges_user_id_idx ON mfa_challenges (user_id, created_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON totp_factors TO call2me_auth_app;
GRANT SELECT, INSERT, UPDATE (wrong_codes, used_at) ON mfa_challenges TO call2me_auth_app;
ALTER TABLE totp_factors ENABLE ROW LEVEL SECURITY;
CREATE POLICY totp_factors_own ON totp_factors TO call2me_auth_app
    USING (user_id = current_person()) WITH CHECK (user_id = current_person());
ALTER TABLE mfa_challenges ENABLE ROW LEVEL SECURITY;
CREATE POLICY mfa_challenges_own ON mfa_challenges TO call2me_auth_app
    USING (user_id = current_person()) WITH CHECK (user_id = current_person());

-- Whose challenge this is, before anybody is known.
CREATE FUNCTION find_mfa_challenge(challenge_id uuid) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT user_id FROM mfa_challenges WHERE id = challenge_id $$;

CREATE FUNCTION prune_mfa_challenges(moment timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM mfa_challenges WHERE created_at < moment - interval '1 day' $$;

REVOKE ALL ON FUNCTION find_mfa_challenge, prune_mfa_challenges FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_mfa_challenge, prune_mfa_challenges TO call2me_auth_app;
