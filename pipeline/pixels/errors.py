"""Why bytes cannot become an image."""


class ImageError(Exception):
    """The bytes cannot become an image; the message is a reason of `pipeline.outcomes`, or a filter's.

    Args:
        reason: `not_image`, `undecodable`, `image_truncated`, `bomb`, `decoder_crashed`, `decoder_timeout`,
            `image_too_small` or `image_too_narrow`.
        original_width: of the upright image, where its header could be read.
        original_height: likewise.
    """

    def __init__(self, reason: str, original_width: int | None = None, original_height: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.original_width = original_width
        self.original_height = original_height
