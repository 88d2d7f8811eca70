"""`python -m neurond.grammarjob`: compiles grammars for another process, one by one.

A process of its own, started by `compiling`. A grammar is a client's program: there are
some whose compilation takes all memory, for ever, and can't be stopped in a thread. So
it happens under limits that end this process: of address space, and an alarm that the
kernel delivers whatever the compiler does. It ends as well when nobody writes to it.

    stdin    u32 length │ the grammar
    stdout   "r" once when ready, then per grammar u32 length │ the verdict
"""

from __future__ import annotations

import resource
import signal
import sys
import threading

from ipc.process import be_first_to_go, set_title
from neurond.compiling import LENGTH
from neurond.grammar import CHECK_S, roomy_threads, verdict

MEMORY_BYTES = 1 << 30


def main() -> None:
    set_title("neurond: grammars")
    be_first_to_go()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with roomy_threads():
        thread = threading.Thread(target=serve)
        thread.start()
    thread.join()


def serve() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"r")
    answers.flush()
    while header := requests.read(LENGTH.size):
        text = requests.read(*LENGTH.unpack(header)).decode()
        signal.setitimer(signal.ITIMER_REAL, 2 * CHECK_S)
        answer = verdict(text).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(LENGTH.pack(len(answer)) + answer)
        answers.flush()


if __name__ == "__main__":
    main()
