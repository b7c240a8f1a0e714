"""keylime_tenant, loaded once, which takes longer than most of what it is asked for.

One JSON object a line in, {"args": [...], "out": FILE}: a process of its own does it and
prints to FILE. Its exit code is a line in file descriptor 3.
"""
import json
import os
import sys

from keylime.cmd.tenant import main

results = os.fdopen(3, "w")
for line in sys.stdin:
    call = json.loads(line)
    pid = os.fork()
    if pid == 0:
        out = os.open(call["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for fd in (1, 2):
            os.dup2(out, fd)
        sys.argv = ["keylime_tenant"] + call["args"]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=results, flush=True)
