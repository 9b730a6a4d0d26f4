"""An HTTPS server of client metadata documents. Prints its port, and then the path of each request.

usage: document_server.py CERTIFICATE KEY

The first part of a path selects the response. `good` is a valid document and `bare` a minimal one.
`fragile` and `changing` are valid for some requests. All others must be rejected.
"""

import json
import ssl
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

request_counts = Counter()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, flush=True)
        request_counts[self.path] += 1
        kind = self.path.split("/")[1].split(".")[0]
        client_id = f"https://{self.headers['host']}{self.path}"
        document = {
            "client_id": client_id,
            "client_name": "Example assistant",
            "redirect_uris": ["https://assistant.example/cb", "http://127.0.0.1/cb"],
            "grant_types": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_method": "none",
        }
        status, headers = 200, {"Content-Type": "application/json", "Cache-Control": "max-age=600"}
        if kind == "other":
            document["client_id"] += "x"
        elif kind == "nobody":
            del document["client_id"]
        elif kind == "secret":
            document["token_endpoint_auth_method"] = "client_secret_basic"
        elif kind == "shared":
            document["client_secret"] = "x"
        elif kind == "private":
            document["jwks"] = {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "x", "d": "d"}]}
        elif kind == "signed":
            document["token_endpoint_auth_method"] = "private_key_jwt"
        elif kind == "wild":
            document["redirect_uris"] = ["https://*.example/cb"]
        elif kind == "bare":
            document = {name: document[name] for name in ("client_id", "redirect_uris")}
        elif kind == "large":
            document["padding"] = "x" * 6000
        elif kind == "endless":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" " * 1024)
                    time.sleep(0.01)
            except OSError:
                return
        elif kind == "slow":
            time.sleep(20)
        elif kind == "moved":
            status, headers["Location"] = 302, "/good.json"
        elif kind == "gone":
            status = 404
        elif kind == "created":
            status = 201
        elif kind == "page":
            headers["Content-Type"] = "text/html"
        elif kind == "fragile" and request_counts[self.path] == 1:
            status = 500
        elif kind == "changing":
            headers["Cache-Control"] = "no-store"
            if request_counts[self.path] > 2:
                document["redirect_uris"] = ["https://assistant.example/new"]
        body = json.dumps(document).encode()
        if kind == "broken":
            body = body[:-1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
