-- Resources of the platform: documents that clients store, and the wallet of a workspace.

CREATE TABLE documents (
    id uuid PRIMARY KEY,
    -- No foreign key: the documents of a deleted workspace are deleted in batches.
    workspace_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('agent', 'call', 'knowledge_base', 'campaign')),
    -- The agent of a call or campaign. No foreign key: the record of a call outlives its agent.
    agent_id uuid,
    body json NOT NULL,
    -- The size of the body as text. A page ends before its documents are too large together.
    body_bytes integer NOT NULL CHECK (body_bytes = octet_length(body::text)),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX documents_workspace_id_idx ON documents (workspace_id, kind, id);
CREATE INDEX documents_agent_id_idx ON documents (agent_id, id) WHERE agent_id IS NOT NULL;

GRANT SELECT, INSERT, UPDATE (agent_id, body, body_bytes, updated_at), DELETE ON documents
    TO call2me_auth_app;
ALTER TABLE documents ENABLE ROW LEVEL SECURITY;
CREATE POLICY documents_by_workspace ON documents TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()))
    WITH CHECK (workspace_id = (SELECT current_workspace_id()));

-- The number and the size of the documents of each workspace, for its limits. A trigger counts
-- them. Writers of one workspace take turns from their statement to their commit.
CREATE TABLE document_usage (
    workspace_id uuid PRIMARY KEY,
    -- NULL: the workspace was deleted.
    live_workspace_id uuid UNIQUE REFERENCES workspaces ON DELETE SET NULL,
    documents bigint NOT NULL,
    -- Of the documents, and of responses that are stored for an `Idempotency-Key`.
    bytes bigint NOT NULL,
    CHECK (live_workspace_id = workspace_id)
);
GRANT SELECT ON document_usage TO call2me_auth_app;
ALTER TABLE document_usage ENABLE ROW LEVEL SECURITY;
CREATE POLICY document_usage_by_workspace ON document_usage TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()));

-- Trigger function: counts the documents that a statement has added, changed and removed.
CREATE FUNCTION count_documents() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO document_usage AS u (workspace_id, live_workspace_id, documents, bytes)
            SELECT workspace_id, workspace_id, count(*), sum(body_bytes)
            FROM added GROUP BY workspace_id
            ON CONFLICT (workspace_id) DO UPDATE
                SET documents = u.documents + excluded.documents, bytes = u.bytes + excluded.bytes;
            -- The workspace may have been deleted while this statement waited for the row.
            IF EXISTS (SELECT FROM document_usage u
                       WHERE u.workspace_id IN (SELECT workspace_id FROM added)
                         AND u.live_workspace_id IS NULL)
            THEN
                RAISE EXCEPTION 'the workspace of a document does not exist'
                    USING ERRCODE = 'foreign_key_violation';
            END IF;
        ELSIF TG_OP = 'UPDATE' THEN
            UPDATE document_usage u SET bytes = u.bytes + change.bytes
            FROM (
                SELECT workspace_id, sum(body_bytes) AS bytes
                FROM (SELECT workspace_id, body_bytes FROM added
                      UNION ALL SELECT workspace_id, -body_bytes FROM removed) AS both_sides
                GROUP BY workspace_id
            ) AS change
            WHERE u.workspace_id = change.workspace_id AND change.bytes <> 0;
        ELSE
            UPDATE document_usage u
            SET documents = u.documents - change.documents, bytes = u.bytes - change.bytes
            FROM (SELECT workspace_id, count(*) AS documents, sum(body_bytes) AS bytes
                  FROM removed GROUP BY workspace_id) AS change
            WHERE u.workspace_id = change.workspace_id;
        END IF;
        RETURN NULL;
    END
    $$;
CREATE TRIGGER documents_count_inserted AFTER INSERT ON documents
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION count_documents();
CREATE TRIGGER documents_count_updated AFTER UPDATE ON documents
    REFERENCING OLD TABLE AS removed NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION count_documents();
CREATE TRIGGER documents_count_deleted AFTER DELETE ON documents
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION count_documents();

-- Deletes up to 1000 documents of a workspace that was deleted. Returns false if there are none. No
-- transaction can add one: the trigger refuses it.
CREATE FUNCTION prune_documents() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    DECLARE
        deleted_workspace uuid;
    BEGIN
        SELECT workspace_id INTO deleted_workspace FROM document_usage
        WHERE live_workspace_id IS NULL LIMIT 1 FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        DELETE FROM documents WHERE id IN (
            SELECT id FROM documents WHERE workspace_id = deleted_workspace LIMIT 1000);
        IF NOT FOUND THEN
            DELETE FROM document_usage WHERE workspace_id = deleted_workspace;
        END IF;
        RETURN true;
    END
    $$;
REVOKE ALL ON FUNCTION count_documents, prune_documents FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prune_documents TO call2me_auth_app;

CREATE TABLE wallet_transactions (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('top_up', 'charge', 'refund')),
    -- US cents. A charge is negative.
    amount_cents bigint NOT NULL,
    description text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX wallet_transactions_workspace_id_idx ON wallet_transactions (workspace_id, id);

GRANT SELECT, INSERT ON wallet_transactions TO call2me_auth_app;
ALTER TABLE wallet_transactions ENABLE ROW LEVEL SECURITY;
CREATE POLICY wallet_transactions_by_workspace ON wallet_transactions TO call2me_auth_app
    USING (workspace_id = (SELECT current_workspace_id()))
    WITH CHECK (workspace_id = (SELECT current_workspace_id()));
