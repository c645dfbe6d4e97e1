"""Pairs that are measured, and the training pairs that measuring needs, from whatever holds them."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Labelled:
    """A pair as evaluation uses it."""

    key: str
    image: bytes
    captions: tuple[str, ...] = ()
    """At least one where the data has captions; COCO has five."""
    class_name: str | None = None
    mask: bytes | None = None
    """Class number of each pixel as an 8-bit PNG as large as the image, where there is one; 255 is not counted."""

    @property
    def caption(self) -> str:
        """The first one; empty without any."""
        return self.captions[0] if self.captions else ""


@dataclass(frozen=True)
class EvalData:
    """What an evaluation reads."""

    heldout: list[Labelled]
    """What is measured, never trained on."""
    training: list[Labelled]
    """Source of class captions, prior images and probe training; never of anything that is measured."""
    class_names: tuple[str, ...] = ()
    """In the order of their numbers, where the data says so; else those of `training`."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Samples left out, by reason."""
