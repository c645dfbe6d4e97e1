"""Ingests a URL table with img2dataset in one process.

`python -m tests.bench.ingest_peer URLS OUT THREADS [one-context]`; it trusts the certificates of the file
that SSL_CERT_FILE names.
"""

import ssl
import sys
import urllib.request

# It imports them where they are installed, which costs memory and start-up, but needs neither here, and its own
# requirements do not bring them.
sys.modules.update({"torch": None, "ray": None})  # type: ignore[dict-item]

import img2dataset  # noqa: E402

from tests.bench.ingest_settings import JPEG_QUALITY, SHARD_SAMPLES, SHORTEST_SIDE_PX, TIMEOUT_S  # noqa: E402

ONE_CONTEXT = "one-context"


def share_one_context() -> None:
    """Python before 3.12 reads the certificate bundle again for every https connection; this does as later ones do."""
    handler = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    urllib.request.install_opener(urllib.request.build_opener(handler))


if ONE_CONTEXT in sys.argv:  # out here, because img2dataset's worker process imports this module and does not call main
    share_one_context()


def main(urls: str, out: str, threads: str, *_: str) -> None:
    """Asks for what ours does: the same resize, quality and hash, and no EXIF table, which ours does not keep."""
    img2dataset.download(
        url_list=urls,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=out,
        output_format="webdataset",
        processes_count=1,
        thread_count=int(threads),
        image_size=SHORTEST_SIDE_PX,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=JPEG_QUALITY,
        number_sample_per_shard=SHARD_SAMPLES,
        timeout=TIMEOUT_S,
        compute_hash="sha256",
        extract_exif=False,
        distributor="multiprocessing",
        enable_wandb=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
