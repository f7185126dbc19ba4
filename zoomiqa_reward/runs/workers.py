"""Worker processes end with the process that started them, also where that one is killed."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this worker process once the process that started it has ended; call it first in a worker.

    A process that is killed cannot end its workers. They would wait for work that never comes, and hold their memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
