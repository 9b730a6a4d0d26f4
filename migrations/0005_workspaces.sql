-- Workspaces that people share: members come by invitation and go, workspaces are deleted.

-- What goes with its workspace is announced with it, not row by row.
CREATE OR REPLACE FUNCTION announce() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        IF TG_OP = 'DELETE' AND TG_TABLE_NAME IN ('api_keys', 'sessions', 'memberships') THEN
            IF NOT EXISTS (SELECT FROM workspaces WHERE id = OLD.workspace_id) THEN
                RETURN NULL;
            END IF;
        END IF;
        CASE TG_TABLE_NAME
            WHEN 'api_keys' THEN PERFORM invalidate(OLD.digest, NULL, NULL, NULL);
            WHEN 'sessions' THEN PERFORM invalidate(NULL, OLD.id, NULL, NULL);
            WHEN 'memberships' THEN
                PERFORM invalidate(NULL, NULL, coalesce(OLD.user_id, NEW.user_id),
                                   coalesce(OLD.workspace_id, NEW.workspace_id));
            WHEN 'users' THEN PERFORM invalidate(NULL, NULL, OLD.id, NULL);
            WHEN 'workspaces' THEN PERFORM invalidate(NULL, NULL, NULL, OLD.id);
        END CASE;
        RETURN NULL;
    END
    $$;

-- The workspace of the transaction, with all that is in it but its log, which stays for its time.
CREATE FUNCTION delete_workspace() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        UPDATE users SET last_workspace_id = NULL WHERE last_workspace_id = current_workspace()
            AND id IN (SELECT user_id FROM memberships WHERE workspace_id = current_workspace());
        DELETE FROM workspaces WHERE id = current_workspace();
        RETURN FOUND;
    END
    $$;

------------------------------------------------------------------------------------------------
-- Invitations

-- The token of the mailed link is a MAC over the id, as those of one_time_tokens are.
CREATE TABLE invitations (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    email text NOT NULL,
    email_key text NOT NULL,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member', 'viewer')),
    -- Who invites, as a public id (`user_…`, `key_…`).
    invited_by text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- When it was accepted, withdrawn or replaced.
    closed_at timestamptz
);
CREATE UNIQUE INDEX invitations_open_key ON invitations (workspace_id, email_key)
    WHERE closed_at IS NULL;
CREATE INDEX invitations_email_key_idx ON invitations (email_key, created_at);
GRANT SELECT, INSERT, UPDATE (closed_at) ON invitations TO call2me_auth_app;
ALTER TABLE invitations ENABLE ROW LEVEL SECURITY;
CREATE POLICY invitations_workspace ON invitations TO call2me_auth_app
    USING (workspace_id = current_workspace()) WITH CHECK (workspace_id = current_workspace());

-- Whereto an invitation is, before anybody is known.
CREATE FUNCTION find_invitation(invitation_id uuid) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT workspace_id FROM invitations WHERE id = invitation_id $$;

-- How many invitations an address was mailed since a moment, by whatever workspace: whom strangers
-- invite must not be buried in mail.
CREATE FUNCTION count_invitations(address text, since timestamptz) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ SELECT count(*) FROM invitations WHERE email_key = address AND created_at > since $$;

CREATE FUNCTION prune_invitations(moment timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$ DELETE FROM invitations WHERE expires_at < moment - interval '7 days' $$;

REVOKE ALL ON FUNCTION delete_workspace, find_invitation, count_invitations, prune_invitations
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_workspace, find_invitation, count_invitations, prune_invitations
    TO call2me_auth_app;
