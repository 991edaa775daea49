"""Models in an older operator set, for runtimes that read no newer one."""

from __future__ import annotations

from edgexnas.errors import BundleError

__all__ = ["at_most_opset"]


def at_most_opset(model: bytes, opset: int) -> bytes:
    """Convert an ONNX file to an operator set, by onnx's own converter.

    The nodes compute the same and keep their names. A file whose set is not newer is returned as
    it is.

    Parameters
    ----------
    model
        Content of a file that passed `check_onnx`, or that was just exported.
    opset
        Version of ONNX's default operator set, such as 17.

    Raises
    ------
    BundleError
        If a node does what that operator set cannot say.
    """
    import onnx
    from onnx import version_converter

    proto = onnx.load_from_string(model)
    given = max((v.version for v in proto.opset_import if v.domain in ("", "ai.onnx")), default=0)
    if given <= opset:
        return model
    try:
        converted = version_converter.convert_version(proto, opset)
        # The converter leaves some attributes in place that the older operator does not have.
        onnx.checker.check_model(converted, full_check=True)
    # RuntimeError of the converter, ValidationError of the checker, InferenceError of the shapes.
    except Exception as error:
        reason = " ".join(str(error).split())
        # The converter puts the file and the assertion of its source in front.
        reason = reason.rsplit("failed: ", 1)[-1][:200]
        raise BundleError(
            f"the model cannot be converted from opset {given} to {opset} ({reason}); use a "
            f"runtime that reads opset {given}, or operations that opset {opset} has"
        ) from error
    return bytes(converted.SerializeToString(deterministic=True))
