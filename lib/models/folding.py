"""A network for inference alone: batch normalisation folded into the convolutions before it, unit scales dropped.

An attack passes its frozen target millions of times; of a small network on a CPU a third of that time is
normalisation (a constant affine map in evaluation mode) and products with a skip scale of 1.
"""

from __future__ import annotations

import copy
import operator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.models.classifier import Classifier

PROBES = 2
PRODUCTS = (operator.mul, torch.mul, "mul")
TOLERANCE = 1e-3  # of the largest logit: what rounding may change


class _Tracer(fx.Tracer):
    """Looks into modules that only call others; what computes by itself is a node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def folded(network: nn.Module) -> nn.Module:
    """A frozen copy of a :class:`Classifier` in evaluation mode that answers the same, up to rounding, in less time.

    Returns:
        the network itself if it is another kind, has draws of its own, carries hooks, cannot be traced (control flow
        that depends on its input) or answers differently when folded.
    """
    if not isinstance(network, Classifier) or any(map(_has_state_of_its_own, network.modules())):
        return network
    short = copy.deepcopy(network).eval().requires_grad_(False)
    size, parameter = short.image_size, next(short.parameters())
    probe = torch.rand(PROBES, 3, size, size, generator=torch.Generator().manual_seed(0)).to(parameter.device)
    with torch.no_grad():
        wanted = short(probe)
        try:
            short.body = _folded(short.body)
            got = short(probe)
        except Exception:  # what tracing somebody's own layer may raise is not known
            return network
    same = torch.allclose(got, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max()))
    return short if same else network


def _has_state_of_its_own(module: nn.Module) -> bool:
    draws = not isinstance(module, Classifier) and hasattr(module, "restart")
    return draws or bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _folded(body: nn.Module) -> nn.Module:
    graph = _Tracer().trace(body)
    traced = fx.GraphModule(body, graph)
    modules = dict(traced.named_modules())
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm2d):
            (before,) = node.args
            alone = before.op == "call_module" and len(before.users) == 1
            if alone and isinstance(modules[before.target], nn.Conv2d):
                both = fuse_conv_bn_eval(modules[before.target], modules[node.target])
                traced.set_submodule(before.target, both)
                node.replace_all_uses_with(before)
        elif node.target in PRODUCTS and len(node.args) == 2:
            for factor, other in (node.args, node.args[::-1]):
                if _is_one(traced, factor) and isinstance(other, fx.Node):
                    node.replace_all_uses_with(other)
    graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced.eval().requires_grad_(False)


def _is_one(traced: fx.GraphModule, node: object) -> bool:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return False
    value = operator.attrgetter(node.target)(traced)
    return isinstance(value, Tensor) and value.ndim == 0 and value.item() == 1
