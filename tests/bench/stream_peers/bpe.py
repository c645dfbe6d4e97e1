"""A Hugging Face tokenizer for the peers, trained on the captions of some tars: `... bpe TARS FILE`."""

import json
import sys
from pathlib import Path

import tokenizers

from tests.bench.stream_peers.common import tar_samples

VOCABULARY = 8_000


def main(tars: str, file: str) -> None:
    """A byte-level BPE, as GPT-2, Qwen and most others are."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False)
    captions = (caption for _, caption in tar_samples(sorted(Path(tars).glob("*.tar"))))
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.save(file)
    print(json.dumps({"version": tokenizers.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
