"""Peak memory of a call."""

import tracemalloc


def peak(function):
    """The most bytes that a call allocates, beyond those allocated before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
