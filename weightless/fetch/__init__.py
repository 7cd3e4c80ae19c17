"""Getting the files of a release into the node cache, verified: one way for the prefetch, the handler and the publisher.

`fetch_release` fetches what the cache lacks. `readback`, for who publishes, reads one object version without keeping it.
Where the time goes is in docs/performance.md.
"""

from weightless.digests import Digests
from weightless.fetch.fetch import FetchResult, fetch_release
from weightless.fetch.transfer import Progress

__all__ = ["Digests", "FetchResult", "Progress", "fetch_release"]
