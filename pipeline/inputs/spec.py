"""The recipe's source section, and the column names of known datasets."""

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.section import Section


@dataclass(frozen=True)
class Columns:
    """The columns of a table that mean something to us; all others are carried through."""

    url: str = "url"
    caption: str = "caption"
    uid: str = ""
    sha256: str = ""
    boxes: str = ""
    header: tuple[str, ...] = ()
    """Names for the columns of CSV and TSV files that begin without a header line."""


PRESETS = {
    "laion": Columns("URL", "TEXT"),
    "datacomp": Columns("url", "text", uid="uid", sha256="sha256", boxes="face_bboxes"),
    "coyo": Columns("url", "text", uid="id"),
    "cc3m": Columns(header=("caption", "url")),
    "cc12m": Columns(header=("url", "caption")),
    # Its `key` depends on how the images were sharded, so it is no uid.
    "recap_datacomp": Columns("url", "re_caption", sha256="sha256"),
}
"""As the datasets are published. DataComp's names are CommonPool's too."""


class SourceSpec(Section):
    """What to ingest. More files may be added to it later; a store refuses files that have changed."""

    urls: str
    """A file, a glob or a folder at any fsspec URL."""
    preset: Literal["", "laion", "datacomp", "coyo", "cc3m", "cc12m", "recap_datacomp"] = ""
    """Column names of a known dataset; the fields below win over it."""
    url: str = ""
    """Column with the URLs; `url` where no preset says otherwise."""
    caption: str = ""
    """Column with the captions; `caption` where no preset says otherwise."""
    uid: str = ""
    """Column with the input's own identifiers, which become the keys of the samples. Without it a key is a hash of URL
    and caption; without a URL, of image and caption."""
    sha256: str = ""
    """Column with the hash that the image's bytes are expected to have."""
    boxes: str = ""
    """Column with the boxes to blur: lists of [left, top, right, bottom] relative to the image's width and height."""
    format: Literal["auto", "parquet", "csv", "tsv", "json", "jsonl", "img2dataset", "webdataset", "images_parquet"] = (
        "auto"
    )
    """`auto` goes by the files' names, or else by their first bytes. The last three adopt a dataset that already holds
    images, without a download: the output folder of img2dataset, tars of webdataset, parquet with an image column."""
    group_by_host: bool | None = None
    """Whether a unit holds the rows of few hosts, which saves connections, name look-ups and robots.txt; by default it
    does where the new files have a million rows or more."""

    @property
    def columns(self) -> Columns:
        """The column names, after preset and defaults."""
        known = PRESETS.get(self.preset, Columns())
        if self.format == "img2dataset":  # which renames them, and whose images are not the bytes that were hashed
            known = replace(known, url="url", caption="caption", sha256="")
        return Columns(
            url=self.url or known.url,
            caption=self.caption or known.caption,
            uid=self.uid or known.uid,
            sha256=self.sha256 or known.sha256,
            boxes=self.boxes or known.boxes,
            header=known.header,
        )

    @property
    def holds_images(self) -> bool:
        """Whether the source is a dataset to adopt, not a table of URLs."""
        return self.format in ("img2dataset", "webdataset", "images_parquet")
