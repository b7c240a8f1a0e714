"""Makes the vectors beside it with Keylime's own crypto.py (7.14.3): python gen.py > keylime.json"""
import json

from keylime import crypto

key = crypto.rsa_generate(2048)
u, v = crypto.generate_random_key(32), crypto.generate_random_key(32)
k = crypto.strbitxor(u, v)
uuid = "d432fbb3-d2f1-4a97-9ef7-75bd81c00001"
public = crypto.rsa_export_pubkey(key).decode()
msg = json.dumps({"type": "revocation", "ip": "127.0.0.1", "agent_id": uuid, "port": 9002,
                  "tpm_policy": '{"mask": "0x400"}', "meta_data": "{}", "event_time": "Sun Nov 22 07:00:00 2026",
                  "event_id": "ima.validation.ima-ng.not_in_allowlist", "severity_label": "emergency",
                  "context": '{"message": "file not found in allowlist: /tmp/evil"}'})
b64 = crypto.base64.b64encode
print(json.dumps({
    "private": crypto.rsa_export_privkey(key).decode(), "pubkey": public, "uuid": uuid,
    "ukey": {"auth_tag": crypto.do_hmac(k, uuid), "encrypted_key": b64(crypto.rsa_encrypt(key.public_key(), u)).decode(),
             "payload": crypto.encrypt(b"a payload", k).decode()},
    "vkey": {"encrypted_key": b64(crypto.rsa_encrypt(key.public_key(), v)).decode()},
    "challenge": "1234567890ABCDEFGHIJ", "hmac": crypto.do_hmac(k, "1234567890ABCDEFGHIJ"),
    "revocation": {"msg": msg, "signature": crypto.rsa_sign(key, msg.encode()).decode()},
}, indent=1))
