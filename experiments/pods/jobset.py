"""Prints the manifest of a run on a TPU slice of Google Kubernetes Engine.

python -m experiments.pods.jobset --name=saf --image=REGISTRY/optgen:TAG \
    --accelerator=tpu-v5-lite-podslice --topology=4x4 --claim=runs \
    -- --config=experiments/configs/saf_digits.py | kubectl apply -f -

The run's folder is `/runs/NAME` on the persistent volume claim, which all hosts must be able to
write to. Needs JobSet in the cluster.
"""

import argparse
import json
import math
import re
import string
import sys
from collections.abc import Sequence
from pathlib import Path

TEMPLATE = Path(__file__).parent / "jobset.yaml"
PORT = 8476


def num_hosts(topology: str, chips_per_host: int) -> int:
    """Hosts of a slice: "4x4" with 4 chips a host is 4.

    Raises:
      ValueError: the topology is no product of sizes, or does not divide.

    >>> num_hosts("2x2x4", 4)
    4
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
        raise ValueError(f"--topology must be like 4x4 or 2x2x4, got {topology!r}.")
    chips = math.prod(map(int, topology.split("x")))
    if chips_per_host < 1 or chips % chips_per_host:
        raise ValueError(
            f"--topology={topology} has {chips} chips, which --chips_per_host={chips_per_host} "
            "does not divide."
        )
    return chips // chips_per_host


def render(
    *,
    name: str,
    image: str,
    accelerator: str,
    topology: str,
    claim: str,
    arguments: Sequence[str],
    chips_per_host: int = 4,
    max_restarts: int = 10,
) -> str:
    """The manifest as YAML.

    Args:
      name: of the JobSet and of the run's folder: a DNS label of at most 40 characters, since
        Kubernetes adds to it.
      image: container with this repository installed and as its working folder.
      accelerator, topology: of the node pool.
      claim: persistent volume claim that holds the runs.
      arguments: of `experiments.train`, without --workdir.
      chips_per_host: TPU chips of a node.
      max_restarts: how often the run goes on after a lost node.
    Raises:
      ValueError: a value cannot work; the message names the option.
    """
    labels = {"name": (name, 40), "accelerator": (accelerator, 63), "claim": (claim, 63)}
    for option, (value, longest) in labels.items():
        if len(value) > longest or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", value):
            raise ValueError(
                f"--{option} must be lower-case letters, digits and hyphens, start with a letter "
                f"and have at most {longest} characters, got {value!r}."
            )
    if not re.fullmatch(r"[\w.\-/:@]+", image):
        raise ValueError(f"--image must be the name of an image, got {image!r}.")
    if max_restarts < 0:
        raise ValueError(f"--max_restarts must be >= 0, got {max_restarts}.")
    if any(argument.startswith("--workdir") for argument in arguments):
        raise ValueError(f"--workdir is /runs/{name} here; leave it out.")
    hosts = num_hosts(topology, chips_per_host)
    args = [
        *arguments,
        f"--workdir=/runs/{name}",
        f"--coordinator={name}-hosts-0-0.{name}:{PORT}",
        f"--num_processes={hosts}",
        "--process_id=$(PROCESS_ID)",
    ]
    return string.Template(TEMPLATE.read_text()).substitute(
        name=name,
        image=json.dumps(image),
        accelerator=accelerator,
        topology=topology,
        claim=claim,
        hosts=hosts,
        chips_per_host=chips_per_host,
        max_restarts=max_restarts,
        args=json.dumps(args),  # JSON is YAML, and quotes what needs it
    )


def main(argv: list[str] | None = None) -> int:
    """Prints the manifest; returns 2 when an option cannot work."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pods.jobset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("name", "image", "accelerator", "topology", "claim"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--chips_per_host", type=int, default=4)
    parser.add_argument("--max_restarts", type=int, default=10)
    parser.add_argument("arguments", nargs="*", metavar="-- OPTION", help="of experiments.train")
    try:
        print(render(**vars(parser.parse_args(argv))), end="")
    except ValueError as error:
        print(f"jobset: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
