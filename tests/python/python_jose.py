"""python-jose verifies access tokens with the whole key set, and Authlib by RFC 9068.

usage: python_jose.py ISSUER ALGORITHM TOKEN ...
"""

import sys

import requests
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from jose import jwt

values = sys.argv[1:]
while values:
    (issuer, algorithm, token), values = values[:3], values[3:]
    keys = requests.get(f"{issuer}/.well-known/jwks.json", timeout=10).json()
    claims = jwt.decode(token, keys, algorithms=[algorithm], issuer=issuer, audience=issuer)
    assert claims["sub"].startswith("user_"), claims

    class Validator(JWTBearerTokenValidator):
        def get_jwks(self):
            return keys

    validator = Validator(issuer=issuer, resource_server=issuer)
    validator.validate_token(validator.authenticate_token(token), None, None)
print("DONE", flush=True)
