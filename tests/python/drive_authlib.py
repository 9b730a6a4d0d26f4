"""Authlib with requests and with httpx: authorization codes, refreshes, revocation and introspection.

usage: drive_authlib.py ISSUER REDIRECT_URI, with PUBLIC_ID, SECRET_ID, SECRET, ROBOT_ID and
ROBOT_SECRET in the environment. Prints AUTHORIZE and the URL that the user has to open, and reads the
URL of the final redirect.
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
    # The library requires https, which this test does not use. It must find no other problem.
    assert "https" in str(error), error


def open_in_browser(url):
    print("AUTHORIZE", url, flush=True)
    return sys.stdin.readline().strip()


def authorize(client):
    verifier = generate_token(48)
    url, state = client.create_authorization_url(server["authorization_endpoint"], code_verifier=verifier)
    return client.fetch_token(
        server["token_endpoint"], authorization_response=open_in_browser(url), code_verifier=verifier, state=state,
        grant_type="authorization_code",
    )


def assert_rejected(client, token):
    try:
        client.refresh_token(server["token_endpoint"], refresh_token=token)
    except OAuthError as error:
        assert error.error == "invalid_grant", error
    else:
        raise AssertionError("a revoked refresh token was accepted")


for kind in (OAuth2Session, OAuth2Client):
    common = {"scope": SCOPE, "redirect_uri": redirect_uri, "code_challenge_method": "S256",
              "token_endpoint": server["token_endpoint"]}
    # The refresh tokens of a public client rotate.
    client = kind(os.environ["PUBLIC_ID"], **common)
    first = authorize(client)["refresh_token"]
    second = client.refresh_token(server["token_endpoint"])["refresh_token"]
    assert second != first
    answer = client.revoke_token(server["revocation_endpoint"], token=second, token_type_hint="refresh_token")
    assert answer.status_code == 200, answer.text
    assert_rejected(client, second)
    for method in ("client_secret_basic", "client_secret_post"):
        auth_methods = {"token_endpoint_auth_method": method, "revocation_endpoint_auth_method": method}
        # The refresh token of a confidential client stays the same.
        client = kind(os.environ["SECRET_ID"], os.environ["SECRET"], **common, **auth_methods)
        token = authorize(client)["refresh_token"]
        assert client.refresh_token(server["token_endpoint"])["refresh_token"] == token
        answer = client.get(f"{issuer}/v1/agents")
        assert answer.status_code == 200, answer.text
        # A client with client credentials introspects its own token.
        robot = kind(os.environ["ROBOT_ID"], os.environ["ROBOT_SECRET"], token_endpoint=server["token_endpoint"], **auth_methods)
        token = robot.fetch_token(grant_type="client_credentials")
        assert "refresh_token" not in token, token
        introspect = lambda: robot.introspect_token(server["introspection_endpoint"], token=token["access_token"]).json()
        assert introspect()["active"] is True
        answer = robot.revoke_token(server["revocation_endpoint"], token=token["access_token"])
        assert answer.status_code == 200, answer.text
        assert introspect() == {"active": False}
    wrong = kind(os.environ["ROBOT_ID"], "wrong", token_endpoint=server["token_endpoint"])
    try:
        wrong.fetch_token(grant_type="client_credentials")
    except OAuthError as error:
        assert error.error == "invalid_client", error
    else:
        raise AssertionError("a wrong secret was accepted")
print("DONE", flush=True)
