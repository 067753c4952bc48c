"""onnxruntime's MatMulNBits multiplies by the very weights that quantize.py says it stored."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from cabochon_convert.compensation import error_spread
from cabochon_convert.graph_onnx import MICROSOFT
from cabochon_convert.quantize import Algorithm, Precision, dequantize_matrix, quantize_matrix

INPUTS, OUTPUTS = 96, 40


@pytest.mark.parametrize("algorithm", sorted(set(get_args(Algorithm)) - {"as-trained"}))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_products_are_those_of_the_stored_weights(bits: int, symmetric: bool, algorithm: Algorithm) -> None:
    generator = np.random.default_rng(8)
    weights = generator.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
    x = generator.standard_normal((3, INPUTS)).astype(np.float32)
    precision = Precision(bits, 32, symmetric, algorithm)
    quantized = quantize_matrix(weights, precision, error_spread(x.T @ x, 32))
    stored = [quantized.values, quantized.scales, quantized.zero_points]
    initializers = [
        numpy_helper.from_array(array, name)
        for name, array in zip(["values", "scales", "zero_points"], stored, strict=True)
        if array is not None
    ]
    # Level 0 keeps activations in float32, so that only the order of sums differs.
    attributes = {"K": INPUTS, "N": OUTPUTS, "bits": bits, "block_size": 32, "accuracy_level": 0}
    names = ["x", *(initializer.name for initializer in initializers)]
    graph = helper.make_graph(
        [helper.make_node("MatMulNBits", names, ["y"], domain=MICROSOFT, **attributes)],
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, INPUTS])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, OUTPUTS])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    expected = x @ dequantize_matrix(quantized, INPUTS, precision).T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
