// An MCP client with version 1 or 2 of the unmodified SDK. It registers itself or, if
// CLIENT_METADATA_URL is set, has a metadata document.
// usage: mcp_client.mjs 1|2 SERVER. Prints AUTHORIZE and the URL that the user has to open, then
// its results, and DONE.
import { randomBytes } from 'node:crypto'
import { callback } from './callback.mjs'

const [version, server] = process.argv.slice(2)
const sdk = version === '1'
  ? {
      ...await import('@modelcontextprotocol/sdk/client/index.js'),
      ...await import('@modelcontextprotocol/sdk/client/streamableHttp.js'),
      ...await import('@modelcontextprotocol/sdk/client/auth.js'),
    }
  : await import('@modelcontextprotocol/client')
const { Client, StreamableHTTPClientTransport, UnauthorizedError } = sdk

const redirect = await callback()
const session = {}
const authProvider = {
  redirectUrl: redirect.uri,
  clientMetadataUrl: process.env.CLIENT_METADATA_URL,
  clientMetadata: {
    client_name: `An assistant, version ${version}`,
    redirect_uris: [redirect.uri],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
  },
  state: () => (session.state = randomBytes(16).toString('hex')),
  clientInformation: () => session.client,
  saveClientInformation: (client) => { session.client = client },
  tokens: () => session.tokens,
  saveTokens: (tokens) => { session.tokens = tokens },
  saveCodeVerifier: (verifier) => { session.verifier = verifier },
  codeVerifier: () => session.verifier,
  saveDiscoveryState: (state) => { session.discovery = state },
  discoveryState: () => session.discovery,
  redirectToAuthorization: (url) => {
    session.answer = redirect.next()
    console.log('AUTHORIZE', url.href)
  },
}

async function finishAuthorization(transport) {
  const { searchParams } = await session.answer
  if (searchParams.get('state') !== session.state) throw new Error('the state does not match')
  // Version 2 checks `iss` itself (RFC 9207).
  await transport.finishAuth(version === '1' ? searchParams.get('code') : searchParams)
}

async function connect() {
  const client = new Client({ name: 'test', version: '1.0.0' })
  const transport = new StreamableHTTPClientTransport(new URL(server), { authProvider })
  try {
    await client.connect(transport)
    return [client, transport]
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error
    await finishAuthorization(transport)
    return connect()
  }
}

const [client, transport] = await connect()
const call = async (name) => (await client.callTool({ name, arguments: {} })).content[0].text
console.log('CLIENT', session.client.client_id)
console.log('WHOAMI', await call('whoami'))
// With an invalid access token, the client refreshes its tokens.
const before = session.tokens.refresh_token
session.tokens = { ...session.tokens, access_token: 'expired' }
console.log('REFRESHED', await call('whoami'))
if (session.tokens.refresh_token === before) throw new Error('the refresh token did not rotate')
// The client requests a wider scope where one is required. Version 1 would refresh if it had a
// token.
if (version === '1') delete session.tokens.refresh_token
try {
  await call('write')
  throw new Error('wrote with a read-only token')
} catch (error) {
  if (!(error instanceof UnauthorizedError)) throw error
  await finishAuthorization(transport)
}
console.log('STEPPED', await call('write'))
console.log('DONE')
await client.close()
redirect.close()
