"""Writing the models and samples of this folder, and measuring what was written."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

FOLDER = Path(__file__).resolve().parent

# The metadata entry in which the dynamo exporter keeps the paths of source files.
_PATH_KEYS = {"pkg.torch.onnx.stack_trace"}


def export_torchscript(
    network: torch.nn.Module, sample: torch.Tensor, input_name: str, *, fold: bool = True
) -> onnx.ModelProto:
    """Exports a network in evaluation mode with the TorchScript exporter, dynamic in the batch.

    Args:
        network: maps a float32 batch to logits of shape [batch, classes].
        sample: one batch of inputs, float32, first axis the batch.
        input_name: name of the graph input; the output is named `logits`.
        fold: whether to fold constants and each BatchNorm into the convolution before it.

    Returns:
        The model at opset 17.
    """
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    buffer = BytesIO()
    torch.onnx.export(
        network.eval(),
        (sample,),
        buffer,
        dynamo=False,
        input_names=[input_name],
        output_names=["logits"],
        dynamic_axes={input_name: {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        do_constant_folding=fold,
        training=mode,
    )
    return onnx.load_model_from_string(buffer.getvalue())


def export_dynamo(
    network: torch.nn.Module, sample: torch.Tensor, input_name: str
) -> onnx.ModelProto:
    """Exports a network in evaluation mode with the dynamo exporter, dynamic in the batch.

    Args:
        network: maps a float32 batch to logits of shape [batch, classes].
        sample: one batch of at least two inputs, float32, first axis the batch.
        input_name: name of the graph input; the output is named `logits`.

    Returns:
        The model at opset 18.
    """
    program = torch.onnx.export(
        network.eval(),
        (sample,),
        dynamo=True,
        input_names=[input_name],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=18,
        verbose=False,
    )
    return program.model_proto


def save_model(model: onnx.ModelProto, name: str) -> Path:
    """Checks a model and writes it as `<name>.onnx`, without the paths of this machine.

    Args:
        model: the exported model; its metadata is changed in place.
        name: file name without suffix, also given to the graph.

    Returns:
        The file written.

    Raises:
        onnx.checker.ValidationError: if the model is not valid ONNX.
        ValueError: if the path of this repository is still in the model.
    """
    model.graph.name = name
    for holder in _metadata_holders(model):
        kept = [entry for entry in holder.metadata_props if entry.key not in _PATH_KEYS]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    if str(FOLDER).encode() in content:
        raise ValueError(f"{name}: a path of this machine is in the model; remove its metadata")
    path = FOLDER / f"{name}.onnx"
    path.write_bytes(content)
    return path


def _metadata_holders(model: onnx.ModelProto) -> Iterator[Any]:
    """Yields the model and every graph, function, node, value and tensor with metadata."""
    yield model
    for function in model.functions:
        yield function
        yield from function.node
        yield from function.value_info
    graph = model.graph
    yield graph
    for members in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        yield from members


def save_samples(
    name: str, input_name: str, calibration: np.ndarray, test: np.ndarray, labels: np.ndarray
) -> None:
    """Writes `<name>_calibration.npz` and `<name>_test.npz`.

    Args:
        name: start of both file names.
        input_name: key of the inputs, the name of the model's input.
        calibration: float32, shape [samples, ...], taken from the training part.
        test: float32, shape [test samples, ...].
        labels: int64, shape [test samples].
    """
    np.savez_compressed(FOLDER / f"{name}_calibration.npz", **{input_name: calibration})
    np.savez_compressed(FOLDER / f"{name}_test.npz", **{input_name: test, "labels": labels})


def report(model: Path, samples: str) -> None:
    """Prints the size, number of parameters and onnxruntime test accuracy of a written model.

    Args:
        model: the ONNX file; its last output holds one score per class.
        samples: start of the name of its test file.
    """
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (graph_input,) = session.get_inputs()
    with np.load(FOLDER / f"{samples}_test.npz") as test:
        scores = session.run(None, {graph_input.name: test[graph_input.name]})[-1]
        accuracy = float(np.mean(scores.argmax(axis=1) == test["labels"]))
    size = model.stat().st_size / 1024
    print(
        f"{model.name:<25} {size:6.1f} KiB {count_parameters(model):>7} parameters"
        f"  test accuracy {accuracy:.4f}"
    )


def count_parameters(model: Path) -> int:
    """Counts the elements of the float32 initializers, BatchNorm statistics among them."""
    tensors = onnx.load(model).graph.initializer
    sizes = [int(np.prod(t.dims)) for t in tensors if t.data_type == onnx.TensorProto.FLOAT]
    # Tensors of one element are constants of the exporter, such as the attention scale.
    return sum(size for size in sizes if size > 1)
