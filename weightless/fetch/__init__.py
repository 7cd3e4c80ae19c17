"""Getting the files of a release into the node cache, verified: one way for the prefetch, the handler and the publisher.

`fetch_release` fetches what the cache lacks. `readback`, for who publishes, reads one object version without keeping it.
Where the time goes is in docs/performance.md.
"""

from weightless.fetch.fetch import FetchResult, Progress, fetch_release

__all__ = ["FetchResult", "Progress", "fetch_release"]
