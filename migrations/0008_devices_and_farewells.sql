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
