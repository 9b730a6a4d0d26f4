"""The Python SDK of the Model Context Protocol: registration, authorization code and refresh.

usage: drive_mcp.py SERVER REDIRECT_URI. Prints AUTHORIZE and the URL that the user has to open, and
reads the URL of the final redirect. Then prints its result, and DONE.
"""

import asyncio
import sys
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp import ClientSession
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientMetadata

server, redirect_uri = sys.argv[1:]


class Storage:
    """Keeps tokens and the registration in memory."""

    tokens = client = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client

    async def set_client_info(self, client):
        self.client = client


async def open_in_browser(url):
    print("AUTHORIZE", url, flush=True)


async def read_redirect():
    query = parse_qs(urlsplit(sys.stdin.readline().strip()).query)
    fields = {name: values[0] for name, values in query.items()}
    return AuthorizationCodeResult(code=fields["code"], state=fields["state"], iss=fields["iss"])


async def call(provider):
    async with httpx2.AsyncClient(auth=provider, follow_redirects=True) as http:
        async with streamable_http_client(server, http_client=http) as streams:
            async with ClientSession(streams[0], streams[1]) as session:
                await session.initialize()
                return (await session.call_tool("whoami", {})).content[0].text


async def main():
    metadata = OAuthClientMetadata(
        client_name="Python assistant", redirect_uris=[redirect_uri],
        grant_types=["authorization_code", "refresh_token"], token_endpoint_auth_method="none",
    )
    storage = Storage()
    provider = OAuthClientProvider(server, metadata, storage, open_in_browser, read_redirect)
    print("WHOAMI", await call(provider), flush=True)
    # After the access token has expired, the client refreshes its tokens.
    before = storage.tokens.refresh_token
    provider.context.token_expiry_time = 1
    print("REFRESHED", await call(provider), flush=True)
    assert storage.tokens.refresh_token != before
    print("DONE", flush=True)


asyncio.run(main())
