// An MCP client that starts mcp-remote, as desktop assistants do.
// usage: mcp_remote.mjs SERVER FOLDER. mcp-remote keeps its tokens in FOLDER. Prints AUTHORIZE and
// the URL that the user has to open, then its result, and DONE.
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'

const [server, folder] = process.argv.slice(2)
const program = fileURLToPath(new URL('./node_modules/mcp-remote/dist/proxy.js', import.meta.url))
// Without PATH, it opens no browser.
const env = { MCP_REMOTE_CONFIG_DIR: folder, HOME: folder, PATH: '' }

async function connect() {
  const transport = new StdioClientTransport({ command: process.execPath, args: [program, server], env, stderr: 'pipe' })
  createInterface({ input: transport.stderr }).on('line', (line) => {
    const url = line.match(/^\s*(http\S+\/oauth\/authorize\?\S+)$/)
    console.log(url ? `AUTHORIZE ${url[1]}` : line)
  })
  const client = new Client({ name: 'test', version: '1.0.0' })
  await client.connect(transport, { timeout: 120_000 })
  return client
}

for (const word of ['WHOAMI', 'AGAIN']) {
  const client = await connect()
  console.log(word, (await client.callTool({ name: 'whoami', arguments: {} })).content[0].text)
  await client.close()
}
console.log('DONE')
