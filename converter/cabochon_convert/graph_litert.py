"""torch modules to LiteRT graphs in which matrices are places without values.

litert-torch takes weights through its compiler as float32: E2B's decoder needs 11 GB and many minutes so. Here a matrix
is a constant of one value that stands for its number; when the compiler is through, it becomes an operator without
inputs, which `flatbuffer_litert.py` replaces by the integers of the checkpoint. A graph is done in a minute, whatever
its weights weigh.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cabochon.quiet import quiet
from cabochon_convert.flatbuffer_litert import PLACE
from cabochon_convert.litert_torch_parts import (
    Converter,
    arith,
    deep_recursion,
    ir,
    lowerings,
    optimization_barrier,
    splat_attr,
)
from cabochon_convert.matrices_litert import Place

_STEP = 2.0**-12
"""Between the values that stand for numbers of matrices, all of them between 1 and 2 and exact in float32."""
MAX_MATRICES = 4095


@dataclass(frozen=True, slots=True)
class Signature:
    """A way to call a graph."""

    name: str
    module: torch.nn.Module
    inputs: Mapping[str, Any]
    """Arguments of the module by name, of the shapes that the graph is to take."""


_LIBRARY = torch.library.Library("cabochon", "DEF")
_LIBRARY.define("matrix(int number, int rows, int columns) -> Tensor")


@torch.library.impl(_LIBRARY, "matrix", "CompositeExplicitAutograd")
def _make_matrix(number: int, rows: int, columns: int) -> torch.Tensor:
    return torch.full((), _value_of(number)).expand(rows, columns)


@torch.library.register_fake("cabochon::matrix", lib=_LIBRARY)
def _describe_matrix(_: int, rows: int, columns: int) -> torch.Tensor:
    return torch.empty((rows, columns))


@lowerings.lower(torch.ops.cabochon.matrix.default)
def _lower_matrix(_: Any, number: int, rows: int, columns: int) -> Any:
    shape, kind = (rows, columns), ir.F32Type.get()
    values = splat_attr(_value_of(number), kind, shape)
    return arith.ConstantOp(ir.RankedTensorType.get(shape, kind), values).results[0]


def _value_of(number: int) -> float:
    # One itself is an ordinary constant.
    return 1 + (number + 1) * _STEP


class PlacedLinear(torch.nn.Module):
    """A linear layer whose matrix is a place."""

    def __init__(self, number: int, place: Place, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self._number = number
        self.out_features, self.in_features = place.rows, place.columns
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., columns] times the transposed matrix, plus the bias: [..., rows]."""
        matrix = torch.ops.cabochon.matrix(self._number, self.out_features, self.in_features)
        # Or the compiler multiplies a factor that follows into the constant, which would be another then.
        # (litert-torch 0.10 cannot lower barriers of one value.)
        product, _ = optimization_barrier((torch.nn.functional.linear(x, matrix, self.bias), x))
        result: torch.Tensor = product
        return result


class Places:
    """The matrices of one graph, by number."""

    def __init__(self) -> None:
        self._places: list[Place] = []

    def __getitem__(self, number: int) -> Place:
        return self._places[number]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def add(self, tensor: str, rows: int, columns: int) -> int:
        """A new place; returns its number."""
        if len(self._places) == MAX_MATRICES:
            raise ValueError(f"a graph has at most {MAX_MATRICES} matrices")
        self._places.append(Place(tensor, rows, columns))
        return len(self._places) - 1

    def take(self, module: torch.nn.Module, tensor_of: Callable[[str], str | None]) -> None:
        """Replace the linear layers of a module, whose weights may be without memory.

        Args:
            tensor_of: the matrix in the checkpoint by the name of a layer; None for layers that are left alone.
        """
        for name, layer in list(module.named_modules()):
            if isinstance(layer, torch.nn.Linear) and (tensor := tensor_of(name)) is not None:
                number = self.add(tensor, layer.out_features, layer.in_features)
                module.set_submodule(name, PlacedLinear(number, self[number], layer.bias))


def convert_graph(signatures: Sequence[Signature], places: Places) -> bytes:
    """The flatbuffer of a graph with places; its other constants are in it."""
    converter = Converter()
    for signature in signatures:
        converter.add_signature(signature.name, signature.module.eval(), sample_kwargs=dict(signature.inputs))
    with warnings.catch_warnings(), quiet(1, 2), deep_recursion():
        warnings.simplefilter("ignore")
        # Lightweight, or the compiler copies constants; without folding by running, which copies the graph once for
        # each of its norms.
        model = converter.convert(lightweight_conversion=True, strict_export=False, runtime_constant_folding=False)
        exporter = model._exporter  # there is no public way to the graph before it is written
        _mark_places(_operation(exporter.module), places)
        return _exported(exporter)


def _operation(module: Any) -> Any:
    return getattr(module, "operation", module)


def _mark_places(module: Any, places: Places) -> None:
    """Replace the constants that stand for matrices by operators without inputs."""
    found: set[int] = set()

    def visit(operation: Any) -> None:
        for region in operation.regions:
            for block in region.blocks:
                for inner in list(block.operations):
                    visit(inner.operation)
        number = _place_number(operation, places)
        if number is not None:
            found.add(number)
            _replace_by_place(operation, number)

    with module.context, ir.Location.unknown():
        visit(module)
    if missing := set(range(len(places))) - found:
        raise ValueError(f"the graph does not use {places[min(missing)].tensor}")


def _place_number(operation: Any, places: Places) -> int | None:
    """Of the matrix that a constant stands for; None for everything else."""
    if operation.name not in ("arith.constant", "tfl.pseudo_const"):
        return None
    values = operation.attributes["value"]
    kind = operation.results[0].type
    if not isinstance(values, ir.DenseFPElementsAttr) or not values.is_splat or len(kind.shape) != 2:
        return None
    steps = (ir.FloatAttr(values.get_splat_value()).value - 1) / _STEP - 1
    if not steps.is_integer() or not 0 <= steps < len(places):
        return None
    place = places[int(steps)]
    return int(steps) if tuple(kind.shape) == (place.rows, place.columns) else None


def _replace_by_place(constant: Any, number: int) -> None:
    option = "".join(f"{byte:02X}" for byte in number.to_bytes(4, "little"))
    operation = ir.Operation.create(
        "tfl.custom",
        results=[constant.results[0].type],
        attributes={
            "custom_code": ir.StringAttr.get(PLACE),
            "custom_option": ir.Attribute.parse(f'#tfl<const_bytes : "0x{option}">'),
        },
        ip=ir.InsertionPoint(constant),
    )
    constant.results[0].replace_all_uses_with(operation.results[0])
    constant.erase()


def _exported(exporter: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.tflite"
        exporter.to_file(str(path))
        return path.read_bytes()
