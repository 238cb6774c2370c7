"""Work done in several threads at once."""

import sys
import threading


def in_threads(work, n=3):
    """What `work` returns in each of n threads that change places often."""
    found, before = {}, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=lambda i=i: found.update({i: work()})) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(found) == n
    return list(found.values())
