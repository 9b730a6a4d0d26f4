// All flows by oauth4webapi, which looks closely at every answer.
// usage: oauth4webapi.mjs ISSUER, with ROBOT_ID and ROBOT_SECRET of a client that acts for itself; prints AUTHORIZE or DEVICE and
// where a person is to go, and at last DONE.
import * as oauth from 'oauth4webapi'
import { callback } from './callback.mjs'

const http = { [oauth.allowInsecureRequests]: true }
const scope = 'call2me:read call2me:write'
const issuer = new URL(process.argv[2])
const { ROBOT_ID, ROBOT_SECRET } = process.env
const is = (what, holds) => { if (!holds) throw new Error(what) }

const found = await oauth.discoveryRequest(issuer, { ...http, algorithm: 'oauth2' })
const server = await oauth.processDiscoveryResponse(issuer, found)
const resource = await oauth.processResourceDiscoveryResponse(issuer, await oauth.resourceDiscoveryRequest(issuer, http))
is('the resource names its server', resource.authorization_servers[0] === server.issuer)

const back = await callback()
const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code'
const registered = await oauth.dynamicClientRegistrationRequest(server, {
  client_name: 'oauth4webapi', redirect_uris: [back.uri], response_types: ['code'],
  grant_types: ['authorization_code', 'refresh_token', DEVICE], token_endpoint_auth_method: 'none',
}, http)
const client = await oauth.processDynamicClientRegistrationResponse(registered)
const nobody = oauth.None()

// A person consents.
const [verifier, state] = [oauth.generateRandomCodeVerifier(), oauth.generateRandomState()]
const url = new URL(server.authorization_endpoint)
url.search = new URLSearchParams({
  response_type: 'code', client_id: client.client_id, redirect_uri: back.uri, scope, state,
  code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
  resource: server.issuer,
})
const answer = back.next()
console.log('AUTHORIZE', url.href)
const told = oauth.validateAuthResponse(server, client, await answer, state)
const first = await oauth.processAuthorizationCodeResponse(server, client,
  await oauth.authorizationCodeGrantRequest(server, client, nobody, told, back.uri, verifier, http))

// What came is a JWT for access tokens (RFC 9068).
const validate = (token) => oauth.validateJwtAccessToken(server,
  new Request('http://resource.example', { headers: { authorization: `Bearer ${token}` } }),
  server.issuer, { ...http, signingAlgorithms: ['EdDSA'] })
const claims = await validate(first.access_token)
is('the token is the client\'s', claims.client_id === client.client_id && claims.scope === scope)

const refresh = async (token) => oauth.processRefreshTokenResponse(server, client,
  await oauth.refreshTokenGrantRequest(server, client, nobody, token, http))
const second = await refresh(first.refresh_token)
is('refresh tokens rotate', second.refresh_token !== first.refresh_token)
await validate(second.access_token)

// A client acts for itself, and looks at its tokens.
const robot = { client_id: ROBOT_ID }
for (const auth of [oauth.ClientSecretBasic(ROBOT_SECRET), oauth.ClientSecretPost(ROBOT_SECRET)]) {
  const own = await oauth.processClientCredentialsResponse(server, robot,
    await oauth.clientCredentialsGrantRequest(server, robot, auth, {}, http))
  is('it is its own subject', (await validate(own.access_token)).sub === ROBOT_ID)
  const look = async () => (await oauth.processIntrospectionResponse(server, robot,
    await oauth.introspectionRequest(server, robot, auth, own.access_token, http))).active
  is('its token is active', await look())
  await oauth.processRevocationResponse(await oauth.revocationRequest(server, robot, auth, own.access_token, http))
  is('and then not any more', !await look())
}
const wrong = oauth.ClientSecretBasic('wrong')
await oauth.processClientCredentialsResponse(server, robot,
  await oauth.clientCredentialsGrantRequest(server, robot, wrong, {}, http)).then(
  () => { throw new Error('a wrong secret was taken') },
  (error) => is('a challenge', error instanceof oauth.WWWAuthenticateChallengeError))

// A device is let in.
const device = await oauth.processDeviceAuthorizationResponse(server, client,
  await oauth.deviceAuthorizationRequest(server, client, nobody, { scope: 'call2me:read' }, http))
const poll = async () => oauth.processDeviceCodeResponse(server, client,
  await oauth.deviceCodeGrantRequest(server, client, nobody, device.device_code, http))
await poll().then(() => { throw new Error('nobody was asked') },
  (error) => is('nobody answered yet', error.error === 'authorization_pending'))
console.log('DEVICE', device.verification_uri_complete)
for (;;) {
  await new Promise((resolve) => setTimeout(resolve, 200))
  const polled = await poll().catch((error) => {
    is(error.message, ['authorization_pending', 'slow_down'].includes(error.error))
  })
  if (polled) {
    await validate(polled.access_token)
    break
  }
}

// Given back, it is worth nothing.
await oauth.processRevocationResponse(await oauth.revocationRequest(server, client, nobody, second.refresh_token, http))
await refresh(second.refresh_token).then(() => { throw new Error('still good') },
  (error) => is('an invalid grant', error instanceof oauth.ResponseBodyError && error.error === 'invalid_grant'))
back.close()
console.log('DONE')
