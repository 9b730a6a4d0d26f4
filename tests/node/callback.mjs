// Where a client on this machine is answered: a port of loopback, any that is free.
import { createServer } from 'node:http'

export async function callback() {
  let told
  const http = createServer((request, response) => {
    const url = new URL(request.url, 'http://127.0.0.1')
    if (url.pathname !== '/callback') return response.writeHead(404).end()
    response.end('You can close this window.')
    told?.(url)
  })
  await new Promise((listening) => http.listen(0, '127.0.0.1', listening))
  return {
    uri: `http://127.0.0.1:${http.address().port}/callback`,
    next: () => new Promise((resolve) => { told = resolve }),
    close: () => { http.close(); http.closeAllConnections() },
  }
}
