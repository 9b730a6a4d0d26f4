-- Resources of the platform: documents that clients store, and the wallet of a workspace.

CREATE TABLE documents (
    id uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces ON DELETE CASCADE,
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
