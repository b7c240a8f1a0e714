#!/usr/bin/env python3
"""Parses a recipe with BitBake's own parser and data store, and runs functions of it; no OE-core.

    library.py LAYER WORK RECIPE FUNCTION...

LAYER is the folder of the repository, WORK one for everything that is written. Classes that the layer's
inherit and that are not its own are empty. Prints a JSON object: the flags of do_image, why the
recipe was skipped, what the functions and the parser said, and the error that ended it."""

import json
import logging
import os
import re
import sys

import bb
import bb.build
import bb.data
import bb.event
import bb.parse
import bb.utils


def stub_classes(layer, work, recipe):
    """Makes an empty class for each that is inherited and is neither the layer's nor ours."""
    ours, stubs = os.path.join(layer, "classes"), os.path.join(work, "classes")
    names = {"base"}
    bb.utils.mkdirhier(stubs)
    for path in [recipe] + [os.path.join(ours, name) for name in os.listdir(ours)]:
        with open(path) as f:
            for line in re.findall(r"^inherit ([\w\- ]+)$", f.read(), re.M):
                names.update(line.split())
    for name in sorted(names):
        if not os.path.exists(os.path.join(ours, name + ".bbclass")):
            with open(os.path.join(stubs, name + ".bbclass"), "w") as f:
                f.write("addtask build\ndo_build() {\n    :\n}\n" if name == "base" else "")


def parse(layer, work, recipe):
    here = os.path.dirname(os.path.abspath(__file__))
    d = bb.data.init()
    d.setVar("BBPATH", ":".join((work, here, layer)))
    d.setVar("PATH", os.environ["PATH"])
    d.setVar("TOPDIR", work)
    d.setVar("ATTEST_BASE", layer)
    d.setVar("__bbclasstype", "recipe")
    d.setVar("BB_ORIGENV", bb.data.init())
    bb.parse.init_parser(d)
    d = bb.parse.handle("conf/bitbake.conf", d, True)
    bb.parse.handle("classes/base.bbclass", d, True)
    d.setVar("FILE", recipe)
    return bb.parse.handle(recipe, d)[""]


def main(layer, work, recipe, *functions):
    said = []
    log = logging.StreamHandler()
    log.emit = lambda record: said.append("%s: %s" % (record.levelname, record.getMessage()))
    logging.getLogger("BitBake").addHandler(log)
    result = {"said": said, "error": "", "skipped": "", "do_image": {}}
    try:
        stub_classes(layer, work, recipe)
        d = parse(layer, work, recipe)
        result["skipped"] = d.getVar("__SKIPPED", False) or ""
        result["do_image"] = {flag: str(value) for flag, value in (d.getVarFlags("do_image") or {}).items()}
        for name in ("T", "WORKDIR", "IMAGE_ROOTFS", "IMGDEPLOYDIR"):
            bb.utils.mkdirhier(d.getVar(name))
        d.setVar("BB_CURRENTTASK", "image")
        os.chdir(d.getVar("WORKDIR"))
        for name in functions:
            bb.build.exec_func(name, d)
    except Exception as e:
        result["error"] = "%s: %s" % (type(e).__name__, e)
    json.dump(result, sys.stdout)


main(*sys.argv[1:])
