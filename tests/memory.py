"""How much memory a call takes."""

import tracemalloc


def peak(function):
    """The most bytes that a call holds, beside those that are there already."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
