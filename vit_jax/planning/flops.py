"""Counts the floating-point operations of a traced function, with all that it computes again."""

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from vit_jax.training.memory import programs


def traced_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Returns the FLOPs of the products and convolutions of a function, on all devices together.

    A multiply-add is two. The body of a loop counts once for each iteration; of the branches of a
    condition the largest counts. So do products whose result nobody uses, which the compiler
    removes: of a ViT the gradient of its images. XLA's own count has a loop's body once.
    """
    program = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_flops(eqn) for eqn in program.eqns)


def _flops(eqn: JaxprEqn) -> int:
    name = eqn.primitive.name
    shapes: list[Any] = [operand.aval for operand in (*eqn.invars[:2], *eqn.outvars[:1])]
    if name == "dot_general":
        ((contracted, _), _) = eqn.params["dimension_numbers"]
        lhs, _, result = shapes
        return 2 * result.size * math.prod(lhs.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        _, kernel, result = shapes
        features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        # Of a stride's gradient, the zeros between the rows take no product.
        stride = math.prod(eqn.params["lhs_dilation"])
        return 2 * result.size * kernel.size // features // stride
    inside = [traced_flops(program) for program in programs(eqn)]
    if name == "cond":
        return max(inside, default=0)
    return sum(inside) * (eqn.params["length"] if name == "scan" else 1)
