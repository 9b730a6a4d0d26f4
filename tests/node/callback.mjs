// The redirect endpoint of a client on this machine, on a free loopback port.
import { createServer } from 'node:http'

export async function callback() {
  let resolveNext
  const http = createServer((request, response) => {
    const url = new URL(request.url, 'http://127.0.0.1')
    if (url.pathname !== '/callback') return response.writeHead(404).end()
    response.end('You can close this window.')
    resolveNext?.(url)
  })
  await new Promise((listening) => http.listen(0, '127.0.0.1', listening))
  return {
    uri: `http://127.0.0.1:${http.address().port}/callback`,
    next: () => new Promise((resolve) => { resolveNext = resolve }),
    close: () => { http.close(); http.closeAllConnections() },
  }
}
