"""What runs the models: versions of libraries and the class of the CPU. Vectors depend on it in their last digits."""

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version

from host.cpu import cpu_class

ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs the models.

    Attributes:
        onnxruntime: version.
        fastembed: version.
        tokenizers: version.
        cpu: see `host.cpu.cpu_class`.
    """

    onnxruntime: str
    fastembed: str
    tokenizers: str
    cpu: str

    @property
    def id(self) -> str:
        """16 hexadecimal digits of a hash over all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:ID_DIGITS]


def read_runtime() -> Runtime:
    """Return what runs the models in this process. Takes milliseconds: it reads files."""
    return Runtime(version("onnxruntime"), version("fastembed"), version("tokenizers"), cpu_class())
