"""Checks an audit log that was exported with proof=true, as docs/audit-log.md describes it.

    verify_audit_log.py PROOF.ndjson JWKS.json CHECKPOINT.json ...

Nothing here is the service's: this is what a customer would write.
"""

import base64
import datetime
import hashlib
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def canonical(event):
    """RFC 8785; the log has neither fractions nor names beyond ASCII."""
    return json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def genesis(workspace_id):
    return hashlib.sha256(f"call2me audit chain v1 {workspace_id}".encode()).digest()


ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def month_of(event_id):
    """The month that an event happened in: its id is a UUIDv7 in base32 (TypeID)."""
    number = 0
    for letter in event_id.removeprefix("event_"):
        number = number * 32 + ALPHABET.index(letter)
    at = datetime.datetime.fromtimestamp((number >> 80) / 1000, datetime.timezone.utc)
    return at.strftime("%Y-%m")


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def signed(checkpoint, jwks):
    """What a checkpoint says, if this service signed it (RFC 7515, RFC 8037)."""
    head, payload, signature = checkpoint["signature"].split(".")
    header = json.loads(decode(head))
    assert header["typ"] == "audit-checkpoint+jws", "the signature is that of something else"
    assert header["alg"] == "EdDSA", "the signature is made in another way"
    key = next(key for key in jwks["keys"] if key["kid"] == header["kid"])
    try:
        Ed25519PublicKey.from_public_bytes(decode(key["x"])).verify(
            decode(signature), f"{head}.{payload}".encode()
        )
    except InvalidSignature:
        raise AssertionError("the signature is not genuine") from None
    told = json.loads(decode(payload))
    said = {name: value for name, value in checkpoint.items() if name != "signature"}
    assert told == said, "the signature is not that of the checkpoint"
    return told


def main(proof_path, jwks_path, *checkpoint_paths):
    with open(jwks_path) as file:
        jwks = json.load(file)
    checkpoints = {}
    for path in checkpoint_paths:
        with open(path) as file:
            checkpoint = signed(json.load(file), jwks)
        workspace_id = checkpoint["workspace_id"]
        checkpoints[checkpoint["sequence"]] = checkpoint["hash"]
    # Where the chain is known before the first line: at its beginning, or at a checkpoint.
    known = {0: genesis(workspace_id).hex(), **checkpoints}
    expected = hash = None
    # What is missing, by its month, and the months of which something is there.
    missing, kept, dropped_before = {}, set(), ""
    with open(proof_path) as file:
        for text in file:
            line = json.loads(text)
            if expected is None:
                expected = line["sequence"]
                before = known.get(expected - 1)
                assert before, f"nothing is known of the chain before {expected}"
                hash = bytes.fromhex(before)
            assert line["sequence"] == expected, f"number {expected} is missing"
            month = month_of(line["event_id"])
            event = line["event"]
            if event is None:
                # Its hash is taken as it is; whether it may be missing shows at the end.
                hash = bytes.fromhex(line["hash"])
                missing.setdefault(month, expected)
            else:
                assert event["id"] == line["event_id"], f"number {expected} was changed"
                kept.add(month)
                digest = hashlib.sha256(canonical(event)).digest()
                hash = hashlib.sha256(hash + digest).digest()
                if event["action"] == "workspace.log_pruned":
                    before = event["metadata"]["before"]
                    # Retention drops whole months, once they are over.
                    if before.endswith("-01T00:00:00.000000Z") and before <= event["at"]:
                        dropped_before = max(dropped_before, before)
            assert hash.hex() == line["hash"], f"number {expected} was changed"
            assert checkpoints.get(expected, hash.hex()) == hash.hex(), (
                f"the chain is not that of the checkpoint at {expected}"
            )
            expected += 1
    for month, sequence in sorted(missing.items(), key=lambda item: item[1]):
        assert month not in kept and month < dropped_before[:7], f"number {sequence} was removed"
    last = (expected or 1) - 1
    for sequence in checkpoints:
        assert sequence <= last, f"the log was cut off behind {last}"
    print(f"{last} events are as they were sealed")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as problem:
        sys.exit(str(problem))
