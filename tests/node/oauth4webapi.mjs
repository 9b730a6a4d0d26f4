// All flows with oauth4webapi, which validates every response strictly.
// usage: oauth4webapi.mjs ISSUER, with ROBOT_ID and ROBOT_SECRET of a client with client
// credentials. Prints AUTHORIZE or DEVICE and the URL that the user has to open, and at last DONE.
import * as oauth from 'oauth4webapi'
import { callback } from './callback.mjs'

const http = { [oauth.allowInsecureRequests]: true }
const scope = 'call2me:read call2me:write'
const issuer = new URL(process.argv[2])
const { ROBOT_ID, ROBOT_SECRET } = process.env
const check = (description, condition) => { if (!condition) throw new Error(description) }

const discovery = await oauth.discoveryRequest(issuer, { ...http, algorithm: 'oauth2' })
const server = await oauth.processDiscoveryResponse(issuer, discovery)
const resource = await oauth.processResourceDiscoveryResponse(issuer, await oauth.resourceDiscoveryRequest(issuer, http))
check('the resource names its server', resource.authorization_servers[0] === server.issuer)

const redirect = await callback()
const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code'
const registered = await oauth.dynamicClientRegistrationRequest(server, {
  client_name: 'oauth4webapi', redirect_uris: [redirect.uri], response_types: ['code'],
  grant_types: ['authorization_code', 'refresh_token', DEVICE], token_endpoint_auth_method: 'none',
}, http)
const client = await oauth.processDynamicClientRegistrationResponse(registered)
const publicClient = oauth.None()

// A user consents.
const [verifier, state] = [oauth.generateRandomCodeVerifier(), oauth.generateRandomState()]
const url = new URL(server.authorization_endpoint)
url.search = new URLSearchParams({
  response_type: 'code', client_id: client.client_id, redirect_uri: redirect.uri, scope, state,
  code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
  resource: server.issuer,
})
const answer = redirect.next()
console.log('AUTHORIZE', url.href)
const params = oauth.validateAuthResponse(server, client, await answer, state)
const first = await oauth.processAuthorizationCodeResponse(server, client,
  await oauth.authorizationCodeGrantRequest(server, client, publicClient, params, redirect.uri, verifier, http))

// The access token is a JWT (RFC 9068).
const validate = (token) => oauth.validateJwtAccessToken(server,
  new Request('http://resource.example', { headers: { authorization: `Bearer ${token}` } }),
  server.issuer, { ...http, signingAlgorithms: ['EdDSA'] })
const claims = await validate(first.access_token)
check('the token belongs to the client', claims.client_id === client.client_id && claims.scope === scope)

const refresh = async (token) => oauth.processRefreshTokenResponse(server, client,
  await oauth.refreshTokenGrantRequest(server, client, publicClient, token, http))
const second = await refresh(first.refresh_token)
check('refresh tokens rotate', second.refresh_token !== first.refresh_token)
await validate(second.access_token)

// A client uses client credentials and introspects its tokens.
const robot = { client_id: ROBOT_ID }
for (const auth of [oauth.ClientSecretBasic(ROBOT_SECRET), oauth.ClientSecretPost(ROBOT_SECRET)]) {
  const own = await oauth.processClientCredentialsResponse(server, robot,
    await oauth.clientCredentialsGrantRequest(server, robot, auth, {}, http))
  check('the client is the subject', (await validate(own.access_token)).sub === ROBOT_ID)
  const isActive = async () => (await oauth.processIntrospectionResponse(server, robot,
    await oauth.introspectionRequest(server, robot, auth, own.access_token, http))).active
  check('the token is active', await isActive())
  await oauth.processRevocationResponse(await oauth.revocationRequest(server, robot, auth, own.access_token, http))
  check('the revoked token is inactive', !await isActive())
}
const wrong = oauth.ClientSecretBasic('wrong')
await oauth.processClientCredentialsResponse(server, robot,
  await oauth.clientCredentialsGrantRequest(server, robot, wrong, {}, http)).then(
  () => { throw new Error('a wrong secret was accepted') },
  (error) => check('the error has a challenge', error instanceof oauth.WWWAuthenticateChallengeError))

// A device is authorized.
const device = await oauth.processDeviceAuthorizationResponse(server, client,
  await oauth.deviceAuthorizationRequest(server, client, publicClient, { scope: 'call2me:read' }, http))
const poll = async () => oauth.processDeviceCodeResponse(server, client,
  await oauth.deviceCodeGrantRequest(server, client, publicClient, device.device_code, http))
await poll().then(() => { throw new Error('the device got tokens without consent') },
  (error) => check('the authorization is pending', error.error === 'authorization_pending'))
console.log('DEVICE', device.verification_uri_complete)
for (;;) {
  await new Promise((resolve) => setTimeout(resolve, 200))
  const polled = await poll().catch((error) => {
    check(error.message, ['authorization_pending', 'slow_down'].includes(error.error))
  })
  if (polled) {
    await validate(polled.access_token)
    break
  }
}

// A revoked refresh token is rejected.
await oauth.processRevocationResponse(await oauth.revocationRequest(server, client, publicClient, second.refresh_token, http))
await refresh(second.refresh_token).then(() => { throw new Error('a revoked refresh token was accepted') },
  (error) => check('the error is invalid_grant', error instanceof oauth.ResponseBodyError && error.error === 'invalid_grant'))
redirect.close()
console.log('DONE')
