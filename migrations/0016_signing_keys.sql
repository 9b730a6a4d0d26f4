-- Signing keys of access tokens and of audit checkpoints. They belong to the deployment, so there
-- is no row-level security.

CREATE TABLE signing_keys (
    -- The `kid`.
    id uuid PRIMARY KEY,
    -- Ed25519, 32 bytes.
    public_key bytea NOT NULL CHECK (octet_length(public_key) = 32),
    -- The seed, encrypted under a key that is derived from `keys.encryption_key`.
    sealed_private_key bytea NOT NULL CHECK (octet_length(sealed_private_key) = 68),
    created_at timestamptz NOT NULL,
    retired_at timestamptz,
    purpose text NOT NULL DEFAULT 'access tokens'
        CHECK (purpose IN ('access tokens', 'checkpoints')),
    -- Customers keep checkpoints for years, so the keys that sign them stay published.
    CHECK (purpose <> 'checkpoints' OR retired_at IS NULL)
);

CREATE TRIGGER signing_keys_reject_reactivation BEFORE UPDATE ON signing_keys FOR EACH ROW
    WHEN (OLD.retired_at IS NOT NULL AND NEW.retired_at IS DISTINCT FROM OLD.retired_at)
    EXECUTE FUNCTION reject_reactivation('retired signing key');

GRANT SELECT, INSERT, UPDATE (retired_at) ON signing_keys TO call2me_auth_app;
