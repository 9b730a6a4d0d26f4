// An MCP client as their authors made it: version 1 or 2 of the SDK, which registers itself or, where CLIENT_METADATA_URL
// is set, has a metadata document.
// usage: mcp_client.mjs 1|2 SERVER; prints AUTHORIZE and where a person is to go, then what it got, and DONE.
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

const back = await callback()
const kept = {}
const authProvider = {
  redirectUrl: back.uri,
  clientMetadataUrl: process.env.CLIENT_METADATA_URL,
  clientMetadata: {
    client_name: `An assistant, version ${version}`,
    redirect_uris: [back.uri],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
  },
  state: () => (kept.state = randomBytes(16).toString('hex')),
  clientInformation: () => kept.client,
  saveClientInformation: (client) => { kept.client = client },
  tokens: () => kept.tokens,
  saveTokens: (tokens) => { kept.tokens = tokens },
  saveCodeVerifier: (verifier) => { kept.verifier = verifier },
  codeVerifier: () => kept.verifier,
  saveDiscoveryState: (state) => { kept.discovery = state },
  discoveryState: () => kept.discovery,
  redirectToAuthorization: (url) => {
    kept.answer = back.next()
    console.log('AUTHORIZE', url.href)
  },
}

async function authorized(transport) {
  const { searchParams } = await kept.answer
  if (searchParams.get('state') !== kept.state) throw new Error('another state')
  // Version 2 looks at `iss` by itself (RFC 9207).
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
    await authorized(transport)
    return connect()
  }
}

const [client, transport] = await connect()
const call = async (name) => (await client.callTool({ name, arguments: {} })).content[0].text
console.log('CLIENT', kept.client.client_id)
console.log('WHOAMI', await call('whoami'))
// A token that is worth nothing any more: it refreshes by itself.
const before = kept.tokens.refresh_token
kept.tokens = { ...kept.tokens, access_token: 'expired' }
console.log('REFRESHED', await call('whoami'))
if (kept.tokens.refresh_token === before) throw new Error('the refresh token did not rotate')
// More is asked for where it is needed. Version 1 would try a refresh, were there a token for it.
if (version === '1') delete kept.tokens.refresh_token
try {
  await call('write')
  throw new Error('writes with what may only read')
} catch (error) {
  if (!(error instanceof UnauthorizedError)) throw error
  await authorized(transport)
}
console.log('STEPPED', await call('write'))
console.log('DONE')
await client.close()
back.close()
