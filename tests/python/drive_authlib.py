"""Authlib over requests and over httpx: codes, refreshes, revocation, introspection.

usage: drive_authlib.py ISSUER REDIRECT_URI, with PUBLIC_ID, SECRET_ID, SECRET, ROBOT_ID, ROBOT_SECRET in the environment;
prints AUTHORIZE and where a person is to go, and reads where that ended.
"""

import os
import sys

import requests
from authlib.common.security import generate_token
from authlib.integrations.httpx_client import OAuth2Client
from authlib.integrations.requests_client import OAuth2Session, OAuthError
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata, get_well_known_url

issuer, redirect_uri = sys.argv[1:]
SCOPE = "call2me:read call2me:write"
server = requests.get(get_well_known_url(issuer, external=True), timeout=10).json()
try:
    AuthorizationServerMetadata(server).validate()
except ValueError as error:
    # The library wants https, which there is none of on this machine; of the rest it finds nothing.
    assert "https" in str(error), error


def ask(url):
    print("AUTHORIZE", url, flush=True)
    return sys.stdin.readline().strip()


def authorize(client):
    verifier = generate_token(48)
    url, state = client.create_authorization_url(server["authorization_endpoint"], code_verifier=verifier)
    return client.fetch_token(
        server["token_endpoint"], authorization_response=ask(url), code_verifier=verifier, state=state,
        grant_type="authorization_code",
    )


def refused(client, token):
    try:
        client.refresh_token(server["token_endpoint"], refresh_token=token)
    except OAuthError as error:
        assert error.error == "invalid_grant", error
    else:
        raise AssertionError("still good")


for kind in (OAuth2Session, OAuth2Client):
    common = {"scope": SCOPE, "redirect_uri": redirect_uri, "code_challenge_method": "S256",
              "token_endpoint": server["token_endpoint"]}
    # A public client: its refresh tokens rotate.
    client = kind(os.environ["PUBLIC_ID"], **common)
    first = authorize(client)["refresh_token"]
    second = client.refresh_token(server["token_endpoint"])["refresh_token"]
    assert second != first
    answer = client.revoke_token(server["revocation_endpoint"], token=second, token_type_hint="refresh_token")
    assert answer.status_code == 200, answer.text
    refused(client, second)
    for method in ("client_secret_basic", "client_secret_post"):
        shown = {"token_endpoint_auth_method": method, "revocation_endpoint_auth_method": method}
        # A confidential one: its refresh token stays.
        client = kind(os.environ["SECRET_ID"], os.environ["SECRET"], **common, **shown)
        token = authorize(client)["refresh_token"]
        assert client.refresh_token(server["token_endpoint"])["refresh_token"] == token
        answer = client.get(f"{issuer}/v1/agents")
        assert answer.status_code == 200, answer.text
        # One that acts for itself, and looks at its own token.
        robot = kind(os.environ["ROBOT_ID"], os.environ["ROBOT_SECRET"], token_endpoint=server["token_endpoint"], **shown)
        token = robot.fetch_token(grant_type="client_credentials")
        assert "refresh_token" not in token, token
        look = lambda: robot.introspect_token(server["introspection_endpoint"], token=token["access_token"]).json()
        assert look()["active"] is True
        answer = robot.revoke_token(server["revocation_endpoint"], token=token["access_token"])
        assert answer.status_code == 200, answer.text
        assert look() == {"active": False}
    wrong = kind(os.environ["ROBOT_ID"], "wrong", token_endpoint=server["token_endpoint"])
    try:
        wrong.fetch_token(grant_type="client_credentials")
    except OAuthError as error:
        assert error.error == "invalid_client", error
    else:
        raise AssertionError("a wrong secret was taken")
print("DONE", flush=True)
