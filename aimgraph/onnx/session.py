"""An exported file in onnxruntime that keeps what its memories hold. It needs numpy and onnxruntime only."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

METADATA = "aimgraph"
"""Key of the metadata that says what a file is, as JSON."""


INITIAL = "aimgraph.initial."
"""Keys of the initial values: little-endian float32, in base64."""


Array = NDArray[Any]

_KINDS = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}


class MemorySession:
    """Runs a file that `aimgraph.export_onnx` wrote.

    Inputs that are memories have the values that they had in torch, unless others are given; states go on from run to
    run. It is not made for several threads at once: onnxruntime's own session, `session`, is.

    Args:
        path: The file.
        providers: Of onnxruntime.
        options: ``onnxruntime.SessionOptions``.

    Attributes:
        session: The ``onnxruntime.InferenceSession``.
        about: What the file says of itself.
        memories: Name -> its description: ``kind``, ``input``, ``output``, ``values`` (N), ``rows``.
        state: Name -> its present value.
        inputs: Names of the model's own inputs, in order.
        outputs: Names of the model's own outputs, in order.

    Raises:
        ValueError: There is no such file, onnxruntime can't load it, or it was not written by `aimgraph.export_onnx`
            and says nothing of itself.
    """

    def __init__(
        self, path: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",), options: Any = None
    ) -> None:
        import onnxruntime

        if not Path(path).is_file():
            raise ValueError(f"{path}: there is no such file")
        try:
            self.session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=list(providers))
        except Exception as error:  # onnxruntime raises its own, undocumented classes
            raise ValueError(f"{path} can't be loaded: {str(error).strip().splitlines()[0]}") from error
        found = self.session.get_modelmeta().custom_metadata_map
        if METADATA not in found:
            raise ValueError(f"{path} was not written by aimgraph.export_onnx: it has no metadata {METADATA!r}")
        self.about: dict[str, Any] = json.loads(found[METADATA])
        self.memories: dict[str, dict[str, Any]] = {item["memory"]: item for item in self.about["memories"]}
        kinds = {item.name: _KINDS[item.type] for item in self.session.get_inputs() if item.type in _KINDS}
        self._initial = {
            name: _decoded(found[f"{INITIAL}{name}"], item, kinds[item["input"]])
            for name, item in self.memories.items()
        }
        given = {item["input"] for item in self.memories.values()}
        written = {item["output"] for item in self.memories.values()}
        self.inputs = tuple(item.name for item in self.session.get_inputs() if item.name not in given)
        self.outputs = tuple(item.name for item in self.session.get_outputs() if item.name not in written)
        self._results = [*self.outputs, *(item["output"] for item in self.memories.values() if item["output"])]
        self.state: dict[str, Array] = {}
        self.reset()

    def reset(self, *names: str) -> None:
        """Let memories start from their initial values again; all of them, if none is named.

        Raises:
            KeyError: There is no memory of such a name.
        """
        for name in names or self.memories:
            self.state[name] = self._initial[name]

    def run(self, *inputs: Array, memories: Mapping[str, Array] | None = None) -> list[Array]:
        """The model's outputs.

        Args:
            *inputs: The model's own, in order.
            memories: Name -> values for this run, [1, N] or [B, N], in place of the present ones.

        Raises:
            ValueError: A memory's shape is none that the file takes, another number of inputs is given, or the batch is
                not that of a state that has a row for each sample: `reset` it between batches of different sizes.
        """
        if len(inputs) != len(self.inputs):
            raise ValueError(
                f"the model takes {len(self.inputs)} inputs, {list(self.inputs)}, and {len(inputs)} are given"
            )
        feeds: dict[str, Array] = dict(zip(self.inputs, inputs, strict=True))
        given = dict(memories or {})
        for name, item in self.memories.items():
            value = given.pop(name, self.state[name])
            feeds[item["input"]] = self._fitted(name, item, value, inputs[0].shape[0] if inputs[0].ndim else 1)
        if given:
            raise ValueError(f"there is no memory {sorted(given)[0]!r}; the memories are {list(self.memories)}")
        results: list[Array] = self.session.run(self._results, feeds)
        after = iter(results[len(self.outputs) :])
        for name, item in self.memories.items():
            if item["output"]:
                self.state[name] = next(after)
        return results[: len(self.outputs)]

    def _fitted(self, name: str, item: dict[str, Any], value: Array, batch: int) -> Array:
        rows, size = item["rows"], item["values"]
        value = np.asarray(value, dtype=self._initial[name].dtype)
        if rows == "batch" and value.shape == (1, size):
            return np.repeat(value, batch, axis=0)
        counts: dict[str, tuple[int, ...]] = {"none": (), "one": (1,), "any": (1, batch), "batch": (batch,)}
        wanted = [[count, size] for count in counts[rows]] or [[size]]
        if list(value.shape) not in wanted:
            shapes = " or ".join(dict.fromkeys(map(str, wanted)))
            hint = "; reset() it before a batch of another size" if rows == "batch" else ""
            raise ValueError(f"memory {name!r} is {list(value.shape)}, and this batch takes {shapes}{hint}")
        return value


def _decoded(text: str, item: dict[str, Any], kind: Any) -> Array:
    values = np.frombuffer(base64.b64decode(text), dtype="<f4").astype(kind)
    return values if item["rows"] == "none" else values.reshape(1, -1)
