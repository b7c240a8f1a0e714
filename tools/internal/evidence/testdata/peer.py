"""The other implementation: answers requests on standard input with Keylime's own code.

One JSON object a line in, one out: {"ok": ...} or {"error": "..."}.
"""
import base64
import json
import logging
import os
import sys
import tempfile

os.environ.setdefault("KEYLIME_DIR", tempfile.mkdtemp())
for component in ("VERIFIER", "REGISTRAR"):
    os.environ[f"KEYLIME_{component}_DATABASE_URL"] = "sqlite"
logging.disable(logging.CRITICAL)

from keylime.tpm import tpm_util  # noqa: E402
from keylime.tpm.tpm_main import Tpm  # noqa: E402


def b(s):
    return base64.b64decode(s)


def checkquote(q):
    pcrs = tpm_util.checkquote(q["ak"].encode(), q["nonce"], b(q["signature"]), b(q["message"]), b(q["pcrs"]), q["hash"])
    return {str(k): v for k, v in pcrs.items()}


def credential(q):
    blob, key = Tpm.encrypt_aik_with_ek(q["id"], b(q["ek"]), b(q["ak"]))
    return {"blob": blob.decode(), "key": key}


def possession(q):
    Tpm.verify_tpm_object(b(q["ak"]), b(q["ak"]), b(q["message"]), b(q["signature"]), qual=b(q["challenge"]),
                          _hash_alg=q["hash"], _sign_alg=q["scheme"])
    return True


def tag(q):
    from keylime import crypto
    return crypto.do_hmac(q["key"].encode(), q["id"])


def registration(q):
    from keylime.models.base import db_manager
    from keylime.models.registrar import RegistrarAgent
    db_manager.make_engine("registrar")
    agent = RegistrarAgent.empty()
    agent.update(dict(q["body"], agent_id=q["id"]))
    return [f"{k}: {v}" for k, v in agent.errors.items() if v]


def problems(a):
    """Errors of a model that is in no database, where the keys of its row are missing."""
    return [f"{k}: {v}" for k, v in a.get_errors().items() if not k.endswith(("/agent_id", "/attestation_index"))]


def capabilities(q):
    """What the verifier's model makes of evidence_supported, and then of evidence_collected."""
    from keylime.models.base import db_manager
    from keylime.models.verifier import Attestation
    db_manager.make_engine("cloud_verifier")
    a = Attestation.empty()
    a.agent_id, a.index = "device", 0
    a.receive_capabilities(q["capabilities"])
    errors = problems(a)
    out = [i.render_evidence_acknowledged() for i in a.evidence]
    a.initialise_parameters()
    for item in a.evidence:
        if item.evidence_class == "log":
            item.chosen_parameters.starting_offset = 0 if item.capabilities.supports_partial_access else None
            item.chosen_parameters.format = "text/plain"
    if "collected" in q:
        a.receive_evidence(q["collected"])
        errors += problems(a)
    requested = a.render_evidence_requested()
    return {"errors": errors, "items": len(out), "requested": requested}


for line in sys.stdin:
    query = json.loads(line)
    try:
        answer = {"ok": globals()[query["do"]](query)}
    except Exception as e:  # the test wants to know of each
        answer = {"error": f"{type(e).__name__}: {e}"}
    print(json.dumps(answer, default=str), flush=True)
