# Made secret-pyhpke.json with pyhpke 0.6.5: python3 secret-pyhpke.py >secret-pyhpke.json
# info is written out here once more, from the description in the OpenAPI document.
import json
import struct
from pyhpke import AEADId, CipherSuite, KDFId, KEMId

suite = CipherSuite.new(KEMId.DHKEM_P256_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)
pair = suite.kem.derive_key_pair(b"the key of a test, known to all: 32 bytes or more")


def fields(*all):
    return b"".join(struct.pack(">I", len(f)) + f for f in all)


vectors = []
for name, revision, run, text in [("web", 1, "", b"secret"), ("db", 1 << 40, "bin/start.sh", b""), ("x" * 128, 7, "run", bytes(range(256)) * 40)]:
    key_name = bytes.fromhex("000b") + bytes(range(32))
    info = fields(b"meta-attest secret 1", b"gateway-17", key_name, struct.pack(">II", 5, 2), name.encode(), struct.pack(">Q", revision), run.encode())
    enc, sender = suite.create_sender_context(pair.public_key, info=info)
    vectors.append({"private": pair.private_key.to_private_bytes()[-32:].hex(), "key_name": key_name.hex(), "device": "gateway-17", "reset": 5, "restart": 2,
                    "name": name, "revision": revision, "run": run, "plaintext": text.hex(), "sealed": (enc + sender.seal(text)).hex()})
print(json.dumps(vectors, indent=1))
