-- Signing keys of access tokens, of ID tokens and of audit checkpoints. They belong to the
-- deployment, so there is no row-level security.

CREATE TABLE signing_keys (
    -- The `kid`.
    id uuid PRIMARY KEY,
    -- `id tokens`: those of clients that ask for RS256; other ID tokens are signed as access tokens
    -- are.
    purpose text NOT NULL CHECK (purpose IN ('access tokens', 'id tokens', 'checkpoints')),
    -- The `alg` of its signatures (RFC 7518, RFC 8037).
    algorithm text NOT NULL CHECK (algorithm IN ('EdDSA', 'ES256', 'RS256')),
    -- The private key (PKCS #8), encrypted under a key that is derived from `keys.encryption_key`.
    -- The encryption authenticates `id`, `purpose` and `algorithm`.
    sealed_private_key bytea NOT NULL CHECK (octet_length(sealed_private_key) BETWEEN 68 AND 2048),
    created_at timestamptz NOT NULL,
    -- The time from which it signs. It is published from its creation.
    signs_at timestamptz NOT NULL,
    retired_at timestamptz,
    -- Customers keep checkpoints for years, so the keys that sign them stay published.
    CHECK (purpose <> 'checkpoints' OR retired_at IS NULL)
);

CREATE TRIGGER signing_keys_reject_reactivation BEFORE UPDATE ON signing_keys FOR EACH ROW
    WHEN (OLD.retired_at IS NOT NULL AND NEW.retired_at IS DISTINCT FROM OLD.retired_at)
    EXECUTE FUNCTION reject_reactivation('retired signing key');

GRANT SELECT, INSERT, UPDATE (retired_at) ON signing_keys TO call2me_auth_app;
