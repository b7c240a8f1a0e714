# Reads what the test made with other people's libraries: the CloudEvents SDK, the verifier of Standard
# Webhooks, and securesystemslib's DSSE. Prints what they understood, as JSON; an exception is a failure.
import json
import sys
from datetime import datetime, timezone

from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from cloudevents.core.formats.json import JSONFormat
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

given = json.load(sys.stdin)
body = given["body"].encode()

event = from_structured_event(HTTPMessage(given["headers"], body), JSONFormat())
Webhook(given["secret"]).verify(body, given["headers"])
try:
    Webhook(given["secret"]).verify(body.replace(b"untrusted", b"trusted"), given["headers"])
    raise SystemExit("Standard Webhooks took a changed body")
except WebhookVerificationError:
    pass

key = SSlibKey.from_crypto(load_pem_public_key(given["public"].encode()), keyid=given["keyid"], scheme=given["scheme"])
envelope = Envelope.from_dict(json.loads(given["envelope"]))
verified = envelope.verify([key], 1)
json.dump({
    "id": event.get_id(), "type": event.get_type(), "source": event.get_source(), "subject": event.get_subject(),
    "specversion": event.get_specversion(), "sequence": event.get_extension("sequence"),
    "time": event.get_time().astimezone(timezone.utc).isoformat(), "data": event.get_data(),
    "signers": list(verified.keys()), "payload_type": envelope.payload_type, "payload": envelope.payload.decode(),
}, sys.stdout)
