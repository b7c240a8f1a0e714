"""Writes keylime.json: what Keylime's own code says of measurement lists and runtime policies.

    apt-get install python3-gpg python3-cryptography python3-sqlalchemy python3-tornado python3-jsonschema python3-psutil
    python3 -m venv --system-site-packages DIR; DIR/bin/pip install keylime==7.14.3; DIR/bin/python gen-keylime.py > keylime.json

A case has a policy, a list in ASCII, and the entries that Keylime refuses, by their number.
The key is that of keys-debug, and signatures are RSA PKCS#1, so that a run repeats.
"""
import base64
import hashlib
import json
import logging
import os
import pathlib
import struct
import sys
import tempfile

os.environ["KEYLIME_DIR"] = tempfile.mkdtemp()
for component in ("VERIFIER", "REGISTRAR"):
    os.environ[f"KEYLIME_{component}_DATABASE_URL"] = "sqlite"
logging.disable(logging.CRITICAL)

from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import padding  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed  # noqa: E402
from keylime.common import algorithms  # noqa: E402
from keylime.ima import file_signatures, ima  # noqa: E402

HERE = pathlib.Path(__file__).parent
LISTS = HERE / "../../ima/testdata/lists"
KEYS = HERE / "../../../../keys-debug"


def sha256(text):
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).digest()


AGGREGATE = sha256(bytes(320))  # of PCRs that nobody extended


def field(*parts):
    data = b"".join(parts)
    return struct.pack("<I", len(data)) + data


def line(template, algo, digest, path, last=None, typed=""):
    prefix = f"{typed}{algo}:"
    data = field(prefix.encode(), b"\0", digest) + field(path.encode(), b"\0")
    if last is not None:
        data += field(last)
    text = f"10 {hashlib.sha1(data).hexdigest()} {template} {prefix}{digest.hex()} {path}"
    return text if last is None else f"{text} {last.hex()}"


def ng(path, content, algo="sha256"):
    return line("ima-ng", algo, hashlib.new(algo, content.encode()).digest(), path)


def aggregate(digest=AGGREGATE):
    return line("ima-ng", "sha256", digest, "boot_aggregate")


def legacy(path, content):
    digest = hashlib.sha1(content.encode()).digest()
    data = digest + path.encode().ljust(256, b"\0")
    return f"10 {hashlib.sha1(data).hexdigest()} ima {digest.hex()} {path}"


def violation(path):
    return f"10 {'0' * 40} ima-ng sha256:{'0' * 64} {path}"


def buf(name, content):
    return line("ima-buf", "sha256", sha256(content), name, content)


KEY = serialization.load_pem_private_key((KEYS / "ima-rsa.key").read_bytes(), None)
SPKI = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
PKCS1 = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
KEYID = hashlib.sha1(PKCS1).digest()[-4:]


def signed(path, content, of=None, kind=3):
    digest = sha256(content)
    sig = KEY.sign(sha256(of or content), padding.PKCS1v15(), Prehashed(hashes.SHA256()))
    label = bytes([kind, 2, 4]) + KEYID + struct.pack(">H", len(sig)) + sig
    return line("ima-sig", "sha256", digest, path, label)


def policy(digests=None, keys=False, ignored=(), **more):
    p = {
        "meta": {"version": 1, "generator": 3},
        "release": 0,
        "digests": {k: [v if isinstance(v, str) else v.hex() for v in vs] for k, vs in (digests or {}).items()},
        "excludes": [],
        "keyrings": {},
        "ima": {"ignored_keyrings": list(ignored), "log_hash_alg": "sha1", "dm_policy": None},
        "ima-buf": {},
        "verification-keys": "",
    }
    if keys:
        p["verification-keys"] = json.dumps({"meta": {"version": 1}, "keyids": [int.from_bytes(KEYID, "big")], "pubkeys": [base64.b64encode(SPKI).decode()]})
    p.update(more)
    return p


LS = {"/usr/bin/ls": [sha256("ls")]}
ls = ng("/usr/bin/ls", "ls")
out = []


def case(name, pol, lines, differs="", pcrs=""):
    """differs is what our verdict is where Keylime's is another, and why."""
    text = json.dumps(pol)
    ima.deserialize_runtime_policy(text)
    rings = file_signatures.ImaKeyrings()
    ring = file_signatures.ImaKeyring.from_string(pol["verification-keys"]) if pol["verification-keys"] else None
    if ring:
        rings.set_tenant_keyring(ring)
    sums = {"sha256": [AGGREGATE.hex()]}
    if pcrs:
        values = dict(l.split() for l in (LISTS / pcrs).read_text().splitlines() if l)
        sums = {b: [hashlib.new(b, b"".join(bytes.fromhex(values[f"{b}:{i}"]) for i in range(n))).hexdigest()] for b, n in (("sha1", 8), ("sha256", 10))}
    refused = []
    for i, l in enumerate(lines):
        _, failure = ima.process_measurement_list(
            None, [l], json.loads(text), None, rings, sums, algorithms.Hash.SHA256)
        if failure:
            refused.append(i)
    out.append({"name": name, "policy": text, "pcrs": pcrs, "list": lines, "refused": refused, "differs": differs})


case("listed", policy(LS), [aggregate(), ls])
case("not listed", policy(LS), [aggregate(), ls, ng("/tmp/evil", "evil")])
case("changed", policy(LS), [aggregate(), ls, ng("/usr/bin/ls", "evil")])
case("two digests of a path", policy({"/usr/bin/ls": [sha256("old"), sha256("ls")]}), [aggregate(), ls])
case("content at another path", policy(LS), [aggregate(), ls, ng("/tmp/ls", "ls")])
case("excluded", policy(LS, excludes=["/tmp/.*"]), [aggregate(), ls, ng("/tmp/x", "x")])
case("excluded by a prefix", policy(LS, excludes=["/tmp"]), [aggregate(), ls, ng("/tmpfoo/evil", "x")])
case("excluded up to the end", policy(LS, excludes=["/tmp$"]), [aggregate(), ls, ng("/tmp/evil", "x")])
case("excluded by an alternative", policy(LS, excludes=["/a|/b", "/c"]), [aggregate(), ls, ng("/b/x", "x"), ng("/c/x", "x"), ng("/d/b", "x")])
case("exclude is no substring", policy(LS, excludes=["tmp"]), [aggregate(), ls, ng("/tmp/x", "x")])
case("key signs", policy(LS, keys=True), [aggregate(), ls, signed("/opt/app", "app")])
case("key signs other content", policy(LS, keys=True), [aggregate(), ls, signed("/opt/app", "evil", of="app")])
case("bad signature, listed", policy({"/opt/app": [sha256("app")]}, keys=True), [aggregate(), signed("/opt/app", "app", of="x")])
case("signed, no key in the policy", policy(LS), [aggregate(), ls, signed("/opt/app", "app")])
case("violation", policy(LS), [aggregate(), ls, violation("/usr/bin/ls")])
case("key in keyring", policy(LS, keyrings={".ima": [sha256(SPKI).hex()]}), [aggregate(), ls, buf(".ima", SPKI)])
case("key in another keyring", policy(LS, keyrings={".ima": [sha256(SPKI).hex()]}), [aggregate(), ls, buf(".evm", SPKI)])
case("key, all keyrings ignored", policy(LS, ignored=["*"]), [aggregate(), ls, buf(".ima", SPKI)])
case("key, its keyring ignored", policy(LS, ignored=[".ima"]), [aggregate(), ls, buf(".ima", SPKI), buf(".evm", SPKI)])
case("no key, keyrings ignored", policy(LS, ignored=["*"]), [aggregate(), ls, buf("kexec-cmdline", b"quiet")])
case("buffer", policy(LS, **{"ima-buf": {"kexec-cmdline": [sha256("quiet").hex()]}}), [aggregate(), ls, buf("kexec-cmdline", b"quiet"), buf("kexec-cmdline", b"init=/bin/sh")])
case("boot_aggregate of another boot", policy(LS), [aggregate(sha256("x")), ls])
for name in ("debian-bpf-seabios", "debian-tcb-violation-seabios"):
    lines = (LISTS / f"{name}.ascii_runtime_measurements").read_text().splitlines()
    digests = {}
    for l in lines:
        words = l.split(" ")
        if words[2] in ("ima-ng", "ima-sig") and words[4] != "boot_aggregate":
            digests.setdefault(words[4], []).append(words[3].split(":")[1])
    case(f"{name}, all listed", policy(digests, ignored=["*"]), lines, pcrs=f"{name}.pcrs")
    for path in list(digests)[::7]:
        del digests[path]
    digests[next(reversed(digests))] = [sha256("x")]
    case(f"{name}, some missing", policy(digests, ignored=["*"]), lines, pcrs=f"{name}.pcrs")

# Where we differ on purpose.
case("bad exclude", policy(LS, excludes=["/tmp/.*", "("]), [aggregate(), ls, ng("/tmp/x", "x")], "error: Keylime accepts the policy and drops all excludes")
case("look-ahead", policy(LS, excludes=["/tmp/(?!evil).*"]), [aggregate(), ls, ng("/tmp/x", "x")], "error: RE2 has none")
case("everything excluded", policy(LS, excludes=[".*"]), [aggregate(), ng("/x", "x")], "error: nothing would be judged")
case("excluded alone", policy(LS, excludes=["/tmp/.*"]), [aggregate(), ng("/tmp/x", "x")], "unverified: no file of the policy was measured")
case("boot_aggregate alone", policy(LS), [aggregate()], "unverified: no file of the policy was measured")
case("boot_aggregate missing", policy(LS), [ls], "untrusted 0: a list begins with it")
case("boot_aggregate twice", policy(LS), [aggregate(), ls, aggregate()], "untrusted 2: a kexec has to be allowed")
case("boot_aggregate of the policy", policy({**LS, "boot_aggregate": [sha256("x")]}), [aggregate(sha256("x")), ls], "untrusted 0: it is computed, whatever the policy lists")
case("boot_aggregate excluded", policy(LS, excludes=["boot_aggregate"]), [aggregate(sha256("x")), ls], "untrusted 0: it cannot be excluded")
case("weak digest", policy({**LS, "/bin/x": [hashlib.sha1(b"x").hexdigest()]}), [aggregate(), ls, ng("/bin/x", "x", "sha1")], "untrusted 2: SHA-1 has to be allowed")
case("weak template", policy({**LS, "/bin/x": [hashlib.sha1(b"x").hexdigest()]}), [aggregate(), ls, legacy("/bin/x", "x")], "untrusted 2: SHA-1 has to be allowed")
case("digest of another algorithm", policy(LS), [aggregate(), ls, line("ima-ng", "sha3-256", sha256("ls"), "/usr/bin/ls")], "untrusted 2: Keylime compares digests without their algorithm")
case("template of digests with a type", policy(LS), [aggregate(), line("ima-ngv2", "sha256", sha256("ls"), "/usr/bin/ls", typed="ima:")], "trusted: Keylime does not read it")
case("space in the policy", policy({"/usr/bin/l s": [sha256("ls")]}), [aggregate(), ng("/usr/bin/l_s", "ls")], "trusted: Linux writes an underscore")
case("excluded buffer", policy(LS, excludes=["kexec.*"]), [aggregate(), ls, buf("kexec-cmdline", b"init=/bin/sh")], "untrusted 2: excludes are about files")
case("portable signature", policy(LS, keys=True), [aggregate(), ls, signed("/opt/app", "app", kind=5)], "untrusted 2: it is of metadata, not of content")
case("measured key signs", policy(LS, keyrings={".ima": [sha256(SPKI).hex()]}), [aggregate(), ls, buf(".ima", SPKI), signed("/opt/app", "app")], "untrusted 3: verification-keys sign, not what was loaded")
case("unlisted, generator 1", policy(LS, meta={"version": 1, "generator": 1}), [aggregate(), ls, ng("/tmp/x", "x")])
json.dump(out, sys.stdout, indent=1)
print()
