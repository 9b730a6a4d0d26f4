-- Invitations to workspaces.

-- The token in the mailed link is a MAC of workspace, address and id, under a key that the database
-- does not hold.
CREATE TABLE invitations (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    email text NOT NULL,
    -- The address in lower case. Addresses are compared in this form.
    normalized_email text NOT NULL,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member', 'viewer')),
    -- The inviter's public id (`user_…`, `key_…`).
    invited_by text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- The time at which the invitation was accepted, withdrawn or replaced.
    closed_at timestamptz,
    -- The inviting API key. It has no foreign key, because API keys are in a later file.
    inviter_key_id uuid,
    -- The inviting user, which is that of the transaction: the role cannot write another one, whose
    -- limit in all workspaces it would use up.
    inviter_user_id uuid DEFAULT current_user_id()
);
CREATE UNIQUE INDEX invitations_open_key ON invitations (workspace_id, normalized_email)
    WHERE closed_at IS NULL;
CREATE INDEX invitations_normalized_email_idx ON invitations (normalized_email, created_at);
CREATE INDEX invitations_workspace_idx ON invitations (workspace_id, created_at);
CREATE INDEX invitations_inviter_user_id_idx ON invitations (inviter_user_id, created_at)
    WHERE inviter_user_id IS NOT NULL;
CREATE INDEX invitations_inviter_key_id_idx ON invitations (inviter_key_id)
    WHERE inviter_key_id IS NOT NULL AND closed_at IS NULL;

GRANT SELECT, UPDATE (closed_at) ON invitations TO call2me_auth_app;
GRANT INSERT (id, workspace_id, email, normalized_email, role, invited_by, created_at, expires_at,
              closed_at, inviter_key_id)
    ON invitations TO call2me_auth_app;
ALTER TABLE invitations ENABLE ROW LEVEL SECURITY;
CREATE POLICY invitations_by_workspace ON invitations TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()))
    WITH CHECK (workspace_id = (SELECT current_workspace_id()));

-- Returns the workspace and the address of an invitation, which its token is bound to, before the
-- caller is authenticated. The link may be sent to no other address. `open_until` is NULL if the
-- invitation is closed.
CREATE FUNCTION find_invitation(p_id uuid)
    RETURNS TABLE (workspace_id uuid, normalized_email text, open_until timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT i.workspace_id, i.normalized_email,
               CASE WHEN i.closed_at IS NULL THEN i.expires_at END
        FROM invitations i WHERE i.id = p_id
    $$;

-- Makes the transaction's user a member of the transaction's workspace, and closes the invitation
-- that allows it. Returns false if it is not open, or not for the address of this user. `p_inviter`
-- is the user who sent it, if no key did.
--
-- A node decided it: the user has presented the token of the invitation. The MAC also covers the
-- time, so that an invitation does not outlive its expiry, and a member did not join earlier.
CREATE FUNCTION accept_invitation(p_id uuid, p_inviter uuid, p_accepted_at bigint, p_key_id bytea,
                                  p_mac bytea)
    RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        accepted invitations;
        accepted_at CONSTANT timestamptz := timestamp_of_micros(p_accepted_at);
    BEGIN
        PERFORM require_signed_decision(
            'accept_invitation',
            uuid_send(p_id) || uuid_send(current_workspace_id()) || uuid_send(current_user_id())
                || int8send(p_accepted_at),
            p_key_id, p_mac);
        UPDATE invitations i SET closed_at = accepted_at
        FROM users u
        WHERE i.id = p_id AND i.workspace_id = current_workspace_id() AND i.closed_at IS NULL
          AND i.expires_at > accepted_at AND u.id = current_user_id()
          AND u.normalized_email = i.normalized_email
        RETURNING i.* INTO accepted;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        INSERT INTO memberships (workspace_id, user_id, role, joined_at, role_set_by_user_id,
                                 role_set_by_key_id)
        SELECT accepted.workspace_id, current_user_id(), accepted.role, accepted_at,
               coalesce(k.creator_user_id, u.id), k.id
        FROM (VALUES (1)) AS one
        LEFT JOIN api_keys k
            ON k.id = accepted.inviter_key_id AND k.workspace_id = accepted.workspace_id
        LEFT JOIN users u ON u.id = p_inviter;
        RETURN true;
    END
    $$;

-- Counts the invitations to an address, from all workspaces. The limit on them protects an address
-- from unwanted emails.
CREATE FUNCTION count_invitations_to_email(p_normalized_email text, p_since timestamptz)
    RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT count(*) FROM invitations
        WHERE normalized_email = p_normalized_email AND created_at > p_since
    $$;

-- Counts the invitations of the transaction's user, to all workspaces.
CREATE FUNCTION count_invitations_by_user(p_since timestamptz)
    RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        SELECT count(*) FROM invitations
        WHERE inviter_user_id = current_user_id() AND created_at > p_since
    $$;

-- Deletes invitations that expired more than seven days ago.
CREATE FUNCTION prune_invitations(p_now timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
        DELETE FROM invitations WHERE expires_at < pruning_time(p_now) - interval '7 days'
    $$;

REVOKE ALL ON FUNCTION find_invitation, accept_invitation, count_invitations_to_email,
    count_invitations_by_user, prune_invitations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_invitation, accept_invitation, count_invitations_to_email,
    count_invitations_by_user, prune_invitations TO call2me_auth_app;
