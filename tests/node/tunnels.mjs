// Asks a gateway for tunnels over HTTP/2: CONNECT, and extended CONNECT (RFC 8441) with each protocol in the arguments,
// if the gateway offers it. Prints a line for each: the status, and what came back after "ping".
import { connect } from 'node:http2'

const [url, key, ...protocols] = process.argv.slice(2)
const session = connect(url)
const settings = await new Promise((resolve) => session.once('remoteSettings', resolve))

// A plain CONNECT has neither a scheme nor a path (RFC 9113, section 8.5).
function open(headers) {
  const request = { ':method': 'CONNECT', authorization: `Bearer ${key}`, ...headers }
  const stream = session.request(request, { endStream: false })
  return new Promise((resolve) => {
    let status = 'none'
    let received = ''
    stream.setEncoding('utf8')
    stream.on('response', (response) => {
      status = response[':status']
      stream.write('ping')
    })
    stream.on('data', (data) => {
      received += data
      if (received === 'ping') stream.close()
    })
    stream.on('error', () => {})
    stream.on('close', () => resolve(`${status} ${received.split('\n')[0]}`))
  })
}

console.log(`CONNECT ${await open({ ':authority': new URL(url).host })}`)
for (const protocol of settings.enableConnectProtocol ? protocols : []) {
  const handshake = { 'sec-websocket-version': '13' }
  console.log(`${protocol} ${await open({ ':protocol': protocol, ':path': '/v1/stream', ...handshake })}`)
}
session.destroy()
console.log('DONE')
