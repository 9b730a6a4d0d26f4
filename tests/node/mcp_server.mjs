// A small MCP server that accepts access tokens of the service under test. It verifies them with
// the service's keys or, if CLIENT_ID and CLIENT_SECRET are set, by introspection of each token.
// usage: mcp_server.mjs ISSUER PORT
import express from 'express'
import { createRemoteJWKSet, jwtVerify } from 'jose'
import * as z from 'zod'
import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js'
import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js'
import { getOAuthProtectedResourceMetadataUrl, mcpAuthMetadataRouter } from '@modelcontextprotocol/sdk/server/auth/router.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'

const [issuer, port] = process.argv.slice(2)
const { CLIENT_ID, CLIENT_SECRET } = process.env
const resource = new URL(`http://127.0.0.1:${port}/mcp`)
const oauthMetadata = await (await fetch(`${issuer}/.well-known/oauth-authorization-server`)).json()
const keys = createRemoteJWKSet(new URL(oauthMetadata.jwks_uri))

async function verifyLocally(token) {
  const expected = { issuer, audience: resource.href, typ: 'at+jwt', algorithms: ['EdDSA'] }
  return (await jwtVerify(token, keys, expected)).payload
}

async function introspect(token) {
  const basic = Buffer.from(`${CLIENT_ID}:${CLIENT_SECRET}`).toString('base64')
  const answer = await fetch(oauthMetadata.introspection_endpoint, {
    method: 'POST', headers: { authorization: `Basic ${basic}` }, body: new URLSearchParams({ token }),
  })
  const claims = await answer.json()
  if (!claims.active || claims.aud !== resource.href) throw new Error('not active, or not for this resource')
  return claims
}

const verifier = {
  async verifyAccessToken(token) {
    try {
      const claims = await (CLIENT_ID ? introspect : verifyLocally)(token)
      return {
        token, clientId: claims.client_id, scopes: claims.scope.split(' '), expiresAt: claims.exp,
        resource: new URL(claims.aud), extra: { sub: claims.sub, workspace_id: claims.workspace_id },
      }
    } catch (error) {
      throw new InvalidTokenError(error.message)
    }
  },
}

const resourceMetadataUrl = getOAuthProtectedResourceMetadataUrl(resource)
const requireScope = (scope) => requireBearerAuth({ verifier, requiredScopes: [scope], resourceMetadataUrl })
const [requireRead, requireWrite] = [requireScope('call2me:read'), requireScope('call2me:write')]
const app = express()
app.use(express.json())
app.use(mcpAuthMetadataRouter({ oauthMetadata, resourceServerUrl: resource, scopesSupported: ['call2me:read'] }))
app.post('/mcp', requireRead, (request, response, next) => {
  const { method, params } = request.body ?? {}
  return method === 'tools/call' && params?.name === 'write' ? requireWrite(request, response, next) : next()
}, async (request, response) => {
  const server = new McpServer({ name: 'test', version: '1.0.0' })
  const textResult = (text) => ({ content: [{ type: 'text', text }] })
  server.registerTool('whoami', { description: 'Returns the caller', inputSchema: { echo: z.string().optional() } },
    async (_, { authInfo }) => textResult(JSON.stringify({ scopes: authInfo.scopes, ...authInfo.extra })))
  server.registerTool('write', { description: 'Requires the write scope', inputSchema: {} }, async () => textResult('written'))
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined, enableJsonResponse: true })
  response.on('close', () => { transport.close(); server.close() })
  await server.connect(transport)
  await transport.handleRequest(request, response, request.body)
})
app.all('/mcp', requireRead, (_, response) => response.status(405).set('Allow', 'POST').end())
app.listen(Number(port), '127.0.0.1', () => console.log('READY'))
