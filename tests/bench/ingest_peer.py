"""Ingests a URL table with img2dataset in one process: `python -m tests.bench.ingest_peer URLS OUT`."""

import sys

import img2dataset

from tests.bench.ingest_settings import IN_FLIGHT, JPEG_QUALITY, LONGEST_SIDE_PX


def main(urls: str, out: str) -> None:
    """Asks for what ours does: the same resize, quality and hash, and no EXIF table, which ours does not keep."""
    img2dataset.download(
        url_list=urls,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=out,
        output_format="webdataset",
        processes_count=1,
        thread_count=IN_FLIGHT,
        image_size=LONGEST_SIDE_PX,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_quality=JPEG_QUALITY,
        compute_hash="sha256",
        extract_exif=False,
        distributor="multiprocessing",
        enable_wandb=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
