// The conformance tests of the Model Context Protocol for authorization servers. Every check must
// succeed: their own exit code ignores warnings and skipped checks.
// usage: conformance.mjs ISSUER PORT, with the CLIENT_ID of a public client. Prints AUTHORIZE and
// the URL that the user has to open, and DONE.
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

const [issuer, port] = process.argv.slice(2)
const out = mkdtempSync(join(tmpdir(), 'conformance-'))
const program = new URL('node_modules/@modelcontextprotocol/conformance/dist/index.js', import.meta.url).pathname
const options = ['--url', issuer, '--client-id', process.env.CLIENT_ID, '-p', port, '-o', out]
const tests = spawn(process.execPath, [program, 'authorization', ...options], { stdio: ['ignore', 'pipe', 'inherit'] })
createInterface({ input: tests.stdout }).on('line', (line) => {
  const isAuthorizationUrl = line.startsWith(issuer) && line.includes('code_challenge=')
  console.log(isAuthorizationUrl ? `AUTHORIZE ${line}` : line)
})
const code = await new Promise((resolve) => tests.on('exit', resolve))
const checks = readdirSync(out).flatMap((folder) => JSON.parse(readFileSync(join(out, folder, 'checks.json'))))
for (const { status, id, errorMessage } of checks) console.log('CHECK', status, id, errorMessage ?? '')
const succeeded = checks.filter(({ status }) => status === 'SUCCESS').length
if (code !== 0 || succeeded !== checks.length || succeeded < 3) process.exit(1)
console.log('DONE')
