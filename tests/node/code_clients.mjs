// Libraries of integration platforms and servers: each gets a code, redeems it, refreshes its
// tokens and calls the API.
// usage: code_clients.mjs ISSUER REDIRECT_URI, with CLIENT_ID and CLIENT_SECRET in the environment.
// Prints AUTHORIZE and the URL that the user has to open, and reads the URL of the final redirect.
import { createInterface } from 'node:readline'
import n8n from '@n8n/client-oauth2'
import { AuthorizationCode } from 'simple-oauth2'
import zapier from 'zapier-platform-core'

const [issuer, redirectUri] = process.argv.slice(2)
const { CLIENT_ID, CLIENT_SECRET } = process.env
// RFC 7636, appendix B.
const verifier = 'dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk'
const pkce = { code_challenge: 'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM', code_challenge_method: 'S256' }
const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]()

async function openInBrowser(url) {
  console.log('AUTHORIZE', url)
  return (await input.next()).value
}

async function callApi(accessToken) {
  const answer = await fetch(`${issuer}/v1/auth/me`, { headers: { authorization: `Bearer ${accessToken}` } })
  if (answer.status !== 200) throw new Error(`${answer.status} ${await answer.text()}`)
}

// A Zapier integration. As in Zapier's OAuth example, its middleware sends the access token with
// every request, also to the token endpoint.
async function useZapier() {
  const requestTokens = async (z, bundle, fields) => {
    const body = { client_id: CLIENT_ID, client_secret: CLIENT_SECRET, ...fields }
    const headers = { 'content-type': 'application/x-www-form-urlencoded' }
    const { data } = await z.request({ url: `${issuer}/oauth/token`, method: 'POST', body, headers })
    return { access_token: data.access_token, refresh_token: data.refresh_token }
  }
  const app = {
    version: '1.0.0',
    platformVersion: '19.1.0',
    authentication: {
      type: 'oauth2',
      oauth2Config: {
        enablePkce: true,
        autoRefresh: true,
        authorizeUrl: {
          url: `${issuer}/oauth/authorize`,
          params: {
            client_id: CLIENT_ID, redirect_uri: '{{bundle.inputData.redirect_uri}}', response_type: 'code',
            state: '{{bundle.inputData.state}}', ...pkce,
          },
        },
        getAccessToken: (z, bundle) => requestTokens(z, bundle, {
          grant_type: 'authorization_code', code: bundle.inputData.code, code_verifier: verifier,
          redirect_uri: redirectUri,
        }),
        refreshAccessToken: (z, bundle) => requestTokens(z, bundle, {
          grant_type: 'refresh_token', refresh_token: bundle.authData.refresh_token,
        }),
      },
      test: { url: `${issuer}/v1/auth/me` },
    },
    beforeRequest: [(request, z, bundle) => {
      const token = bundle.authData.access_token
      if (token) request.headers.Authorization = `Bearer ${token}`
      return request
    }],
  }
  const run = zapier.createAppTester(app)
  const { oauth2Config, test } = app.authentication
  const state = 'x'.repeat(861)
  const url = await run(oauth2Config.authorizeUrl, { inputData: { redirect_uri: redirectUri, state } })
  const answer = new URL(await openInBrowser(url))
  if (answer.searchParams.get('state') !== state) throw new Error('the state does not match')
  const inputData = { code: answer.searchParams.get('code') }
  const tokens = await run(oauth2Config.getAccessToken, { inputData })
  for (let round = 0; round < 2; round += 1) {
    Object.assign(tokens, await run(oauth2Config.refreshAccessToken, { authData: tokens }))
    await run(test, { authData: tokens })
  }
}

// n8n, with the client's credentials in the header and in the body.
async function useN8n(authentication) {
  const client = new n8n.ClientOAuth2({
    clientId: CLIENT_ID, clientSecret: CLIENT_SECRET, accessTokenUri: `${issuer}/oauth/token`,
    authorizationUri: `${issuer}/oauth/authorize`, redirectUri, state: 'xyz', authentication,
    scopes: ['openid', 'call2me:read'], scopesSeparator: ',',
  })
  const answer = await openInBrowser(client.code.getUri({ query: pkce }))
  const token = await client.code.getToken(answer, { body: { code_verifier: verifier } })
  await callApi((await token.refresh()).accessToken)
}

async function useSimpleOAuth2(options) {
  const client = new AuthorizationCode({
    client: { id: CLIENT_ID, secret: CLIENT_SECRET },
    auth: { tokenHost: issuer, authorizePath: '/oauth/authorize', revokePath: '/oauth/revoke' }, options,
  })
  const url = client.authorizeURL({ redirect_uri: redirectUri, scope: ['profile', 'call2me:read'], state: 'xyz', ...pkce })
  const code = new URL(await openInBrowser(url)).searchParams.get('code')
  const token = await client.getToken({ code, redirect_uri: redirectUri, code_verifier: verifier })
  const renewed = await token.refresh({ scope: 'profile' })
  await callApi(renewed.token.access_token)
  await renewed.revokeAll()
}

await useZapier()
for (const authentication of ['header', 'body']) await useN8n(authentication)
for (const options of [{}, { authorizationMethod: 'body', bodyFormat: 'json' }]) await useSimpleOAuth2(options)
console.log('DONE')
process.exit(0)
