-- Passkeys sign in by themselves.

CREATE TABLE passkeys (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- What its device knows it by; nobody else has the same.
    credential_id bytea NOT NULL CHECK (octet_length(credential_id) BETWEEN 1 AND 1023),
    public_key bytea NOT NULL,
    -- How often it signed, as it says; a copy of it would count apart.
    sign_count bigint NOT NULL,
    backup_eligible boolean NOT NULL,
    name text NOT NULL,
    created_at timestamptz NOT NULL,
    last_used_at timestamptz,
    CONSTRAINT passkeys_credential_id_key UNIQUE (credential_id)
);
CREATE INDEX passkeys_user_idx ON passkeys (user_id, id);

GRANT SELECT, INSERT, DELETE, UPDATE (sign_count, last_used_at) ON passkeys TO call2me_auth_app;
ALTER TABLE passkeys ENABLE ROW LEVEL SECURITY;
CREATE POLICY passkeys_own ON passkeys TO call2me_auth_app
    USING (user_id = current_person()) WITH CHECK (user_id = current_person());

-- Challenges are derived from their ids, which hold their time: kept are only those that were met.
CREATE TABLE passkey_challenges_met (
    id uuid PRIMARY KEY
);

-- Whose passkey this is, before anybody is known.
CREATE FUNCTION find_passkey(credential bytea) RETURNS uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        RETURN (SELECT user_id FROM passkeys WHERE credential_id = credential);
    END
    $$;

-- Whether a challenge is met for the first time.
CREATE FUNCTION meet_passkey_challenge(challenge uuid) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        INSERT INTO passkey_challenges_met VALUES (challenge) ON CONFLICT DO NOTHING;
        RETURN FOUND;
    END
    $$;

CREATE FUNCTION prune_passkey_challenges(moment timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM passkey_challenges_met WHERE id < uuid_at(moment - interval '1 day') $$;

REVOKE ALL ON FUNCTION find_passkey, meet_passkey_challenge, prune_passkey_challenges FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_passkey, meet_passkey_challenge, prune_passkey_challenges
    TO call2me_auth_app;
