"""An SMTP server for tests. Prints its port, and then each message that it accepts as a line of JSON.

The local part of the recipient's address, up to a `+`, selects a fault. `deferred` gets 451 twice and
`stubborn` seven times, `refused` gets 550. For `dropped`, the first message is accepted, but the
connection is closed without a response.

With the arguments mode (`starttls` or `tls`), certificate, key and login (`user:password`), the server
accepts messages only over TLS and only after authentication.
"""

import asyncio
import json
import ssl
import sys
from collections import Counter
from email import message_from_bytes, policy

from aiosmtpd.smtp import SMTP, AuthResult

tries = Counter()


class Handler:
    async def handle_DATA(self, server, session, envelope):
        [to] = envelope.rcpt_tos
        fault = to.split("@")[0].split("+")[0].lower()
        tries[to] += 1
        if tries[to] <= {"deferred": 2, "stubborn": 7}.get(fault, 0):
            return "451 try again later"
        if fault == "refused":
            return "550 no such mailbox"
        message = message_from_bytes(envelope.content, policy=policy.default)
        parts = {part.get_content_type(): part.get_content() for part in message.walk() if not part.is_multipart()}
        print(
            json.dumps(
                {
                    "to": to,
                    "from": envelope.mail_from,
                    "subject": message["subject"],
                    "id": message["message-id"],
                    "date": message["date"],
                    "type": message.get_content_type(),
                    "text": parts.get("text/plain"),
                    "html": parts.get("text/html"),
                }
            ),
            flush=True,
        )
        if fault == "dropped" and tries[to] == 1:
            server.transport.abort()
        return "250 taken"


def authenticator(login):
    user, password = (part.encode() for part in login.split(":"))

    def check(server, session, envelope, mechanism, data):
        return AuthResult(success=(data.login, data.password) == (user, password), handled=False)

    return check


async def main(mode=None, certificate=None, key=None, login=None):
    loop = asyncio.get_running_loop()
    options, context = {"hostname": "sink.test"}, None
    if mode:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        options |= {"authenticator": authenticator(login), "auth_required": True}
        # The library does not notice that the connection uses TLS from the start.
        options |= {"tls_context": context, "require_starttls": True} if mode == "starttls" else {"auth_require_tls": False}
    wrapped = context if mode == "tls" else None
    server = await loop.create_server(lambda: SMTP(Handler(), **options), "127.0.0.1", 0, ssl=wrapped)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
