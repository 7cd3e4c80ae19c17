"""Getting the files of a release into the node cache, verified: one way for the prefetch, the handler and the publisher.

`fetch_release` fetches what the cache lacks. `read_back` reads one object version and says what it is, without keeping it.
Where the time goes is in docs/performance.md.
"""

from weightless.digests import Digests
from weightless.fetch.fetch import FetchResult, fetch_release
from weightless.fetch.readback import read_back
from weightless.fetch.transfer import Progress

__all__ = ["Digests", "FetchResult", "Progress", "fetch_release", "read_back"]
