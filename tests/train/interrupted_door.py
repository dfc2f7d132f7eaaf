"""A process that opens the training door once a line of stdin, each time in a fork of itself that interrupts itself.

A line is JSON: ``arguments`` of the command line, ``log`` for what is said, and perhaps ``moment``: [function, number],
as in ["dma_lab.train.runs:RunDirectory.write_summary", 3], which gets ``signal`` (to all processes that it started too,
as Ctrl-C does) when the function is called for the third time. The answer is a line with the exit status.
"""

import atexit
import functools
import importlib
import json
import os
import signal
import sys
import time
import traceback

import train
from dma_lab.door import open_door


def interrupt_at(function: str, number: int, sent: int) -> None:
    module, path = function.split(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    original, calls = getattr(owner, name), iter(range(1, 1_000_000))

    @functools.wraps(original)
    def interrupted(*args, **kwargs):
        if next(calls) == number:
            os.killpg(os.getpgrp(), sent)
            time.sleep(0.3)  # whoever dies of it is dead
        return original(*args, **kwargs)

    setattr(owner, name, interrupted)


def open_once(request: dict) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "moment" in request:
        interrupt_at(*request["moment"], request["signal"])
    sys.argv = ["train.py", *request["arguments"]]
    status = 0
    try:
        open_door(train.main, "train")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


for line in sys.stdin:
    if (child := os.fork()) == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(open_once(json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
