"""Web servers as a file system: fsspec lists their pages, obstore reads ranges of their files."""

from urllib.parse import unquote, urlsplit

from fsspec.implementations.http import HTTPFileSystem

from pipeline.object_store import RangeReader


class WebFileSystem(RangeReader, HTTPFileSystem):  # type: ignore[misc]
    """Files at http:// and https://."""

    def _place(self, path: str) -> tuple[str, str] | None:
        url = urlsplit(path)
        if url.query:  # obstore takes keys, and this would be no part of one
            return None
        return f"{url.scheme}://{url.netloc}", unquote(url.path.lstrip("/"))
