-- People are told of new devices, and leave for good.

-- Whether a person has signed in from somewhere like this before: the newest sessions tell, ended or not.
CREATE INDEX sessions_newest_idx ON sessions (user_id, created_at DESC);

-- The person of the transaction, with all that is theirs alone. Keys that they minted stay.
CREATE FUNCTION delete_person() RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        DELETE FROM users WHERE id = current_person();
        RETURN FOUND;
    END
    $$;
REVOKE ALL ON FUNCTION delete_person FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_person TO call2me_auth_app;

-- Whether the password of the transaction's person is still the one that was verified, which then stays so
-- until the transaction ends.
CREATE FUNCTION pin_password_hash(hash text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
    AS $$
    BEGIN
        PERFORM FROM users WHERE id = current_person() AND password_hash = hash FOR NO KEY UPDATE;
        RETURN FOUND;
    END
    $$;
REVOKE ALL ON FUNCTION pin_password_hash FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pin_password_hash TO call2me_auth_app;
