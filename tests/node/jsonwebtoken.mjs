// jsonwebtoken verifies access tokens, as Express, Passport and Nest do with it.
// usage: jsonwebtoken.mjs ISSUER ALGORITHM TOKEN …
import { createPublicKey } from 'node:crypto'
import jwt from 'jsonwebtoken'

const values = process.argv.slice(2)
while (values.length) {
  const [issuer, algorithm, token] = values.splice(0, 3)
  const { keys } = await (await fetch(`${issuer}/.well-known/jwks.json`)).json()
  const { kid } = jwt.decode(token, { complete: true }).header
  const key = createPublicKey({ key: keys.find((key) => key.kid === kid), format: 'jwk' })
  const claims = jwt.verify(token, key, { algorithms: [algorithm], issuer, audience: issuer })
  if (!claims.sub.startsWith('user_')) throw new Error('the token has no user')
}
console.log('DONE')
