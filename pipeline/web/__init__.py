"""URL to bytes: politely, safely, or the reason why not. `fetcher.fetch_all` is the way in."""
