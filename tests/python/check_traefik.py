"""Checks the configuration of Traefik in docs/gateways.md, which no test can run: check_traefik.py FILE

Prints the address of the check, and the headers that its response must have. Go normalizes the case of header names.
"""
import itertools
import re
import sys

import yaml

IDENTITY = ["X-Auth-Subject", "X-Auth-Workspace-Id", "X-Auth-Scope", "X-Auth-Key-Id", "X-Auth-Client-Id"]
METHODS = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"]


def spellings(names):
    """Returns the names with each of their hyphens as a hyphen or an underscore."""
    for name in names:
        yield from map("".join, itertools.product(*("-_" if letter == "-" else letter for letter in name)))


with open(sys.argv[1], encoding="utf-8") as file:
    http = yaml.safe_load(file)["http"]
routers, middlewares = http["routers"], http["middlewares"]
rules = {name: router["rule"] for name, router in routers.items()}
headers = {
    name: middleware["headers"]["customRequestHeaders"]
    for name, middleware in middlewares.items()
    if "headers" in middleware
}

# The router with the greatest priority that matches a request gets it. Without one, it is the length of the rule.
assert {name: router["middlewares"] for name, router in routers.items()} == {
    "api": ["call2me-auth", "no-upgrade"],
    "api-websocket": ["call2me-auth", "websocket"],
    "api-preflight": ["anonymous"],
}
assert len(rules["api"]) < routers["api-websocket"]["priority"] < routers["api-preflight"]["priority"]
assert "!Method(`CONNECT`)" in rules["api"]
assert "Method(`OPTIONS`)" in rules["api-preflight"]
assert "Method(`GET`) && HeaderRegexp(`Upgrade`, `(?i)^websocket$`)" in rules["api-websocket"]

# Traefik removes a header whose value is empty, and otherwise replaces it.
assert headers["no-upgrade"] == {"Upgrade": ""}
assert headers["websocket"] == {"Upgrade": "websocket"}
assert set(headers["anonymous"]) == {"Upgrade", "Authorization", "Cookie", *spellings(IDENTITY + METHODS)}
assert not any(headers["anonymous"].values())

auth = middlewares["call2me-auth"]["forwardAuth"]
replaced = re.compile(auth["authResponseHeadersRegex"])
assert all(map(replaced.search, spellings(IDENTITY)))
assert not any(map(replaced.search, ["Authorization", "Proxy-X-Auth-Scope"]))
assert auth["authRequestHeaders"] == ["Authorization", "User-Agent", *METHODS]
assert auth["trustForwardHeader"] is False
print(auth["address"], *IDENTITY)
