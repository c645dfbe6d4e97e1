"""Fetches the URLs of its arguments with hardly any file descriptors, and prints how many succeeded."""

import logging
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from pipeline.web.fetcher import Node
from pipeline.web.spec import FetchSpec
from tests.pipeline.web.fetching import fetch_list

if __name__ == "__main__":
    logging.basicConfig()
    spec = FetchSpec(allow_addresses=("127.0.0.0/8",), in_flight=100, retries=0, robots=False)
    node = Node(spec)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    ends = fetch_list(sys.argv[1:], spec, node)
    sys.stdout.write(f"{sum(not one.reason for one in ends)}\n")
