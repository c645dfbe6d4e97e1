"""What a process keeps between the units that it runs: the network's memory and the decoder's child process."""

import atexit

from pipeline.pixels.decoder import Decoder
from pipeline.pixels.spec import ImageSpec
from pipeline.web.fetcher import Node
from pipeline.web.spec import FetchSpec

_nodes: dict[FetchSpec, Node] = {}
_decoders: dict[ImageSpec, Decoder] = {}


def node_of(spec: FetchSpec) -> Node:
    """This process's DNS and robots caches and host health for a recipe's fetch section."""
    if spec not in _nodes:
        _nodes[spec] = Node(spec)
    return _nodes[spec]


def decoder_of(spec: ImageSpec) -> Decoder:
    """This process's decoder for a recipe's image section; its child is started by the first image."""
    if spec not in _decoders:
        _decoders[spec] = Decoder(spec)
    return _decoders[spec]


@atexit.register
def forget() -> None:
    """End the decoders and forget the network, as a new process would."""
    for decoder in _decoders.values():
        decoder.close()
    _decoders.clear()
    _nodes.clear()
