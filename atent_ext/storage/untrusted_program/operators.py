"""The operators that a program from others may call: all of `aten`, computed from their arguments alone.

Not listed, and so refused: operators that read files or uninitialised memory (`from_file`, `empty`), that look at
memory in another shape than a tensor's own (`as_strided`, `set_`, `resize_`, `view.dtype`), whose result has a shape
that depends on values (`nonzero`, `item`), and every other namespace.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload

_ELEMENTWISE = """
abs acos acosh asin asinh atan atanh ceil cos cosh erf erfc exp exp2 expm1 floor frac log log10 log1p log2 log_sigmoid
neg reciprocal round rsqrt sigmoid sign sin sinh sqrt square tan tanh trunc
celu elu gelu glu hardsigmoid hardswish hardtanh leaky_relu mish prelu _prelu_kernel relu relu6 selu silu softplus
softshrink threshold
clamp clamp.Tensor clamp_min clamp_max clip addcdiv addcmul lerp.Scalar lerp.Tensor nan_to_num
isfinite isinf isnan logical_and logical_not logical_or logical_xor bitwise_not
bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor
add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar
div.Tensor_mode div.Scalar_mode true_divide.Tensor floor_divide floor_divide.Scalar remainder.Tensor remainder.Scalar
fmod.Tensor fmod.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar maximum minimum atan2
eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar
where.self where.ScalarSelf where.ScalarOther where.Scalar masked_fill.Scalar masked_fill.Tensor
"""

_IN_PLACE = """
abs_ add_.Tensor add_.Scalar sub_.Tensor sub_.Scalar mul_.Tensor mul_.Scalar div_.Tensor div_.Scalar pow_.Scalar
neg_ exp_ sqrt_ sigmoid_ tanh_ relu_ relu6_ celu_ elu_ gelu_ hardsigmoid_ hardswish_ hardtanh_ leaky_relu_ mish_ selu_
silu_ threshold_ clamp_ clamp_min_ clamp_max_ masked_fill_.Scalar masked_fill_.Tensor
copy_ fill_.Scalar fill_.Tensor zero_
"""

_REDUCTIONS = """
sum sum.dim_IntList mean mean.dim prod prod.dim_int amax amin max max.dim max.other min min.dim min.other
argmax argmin any any.dim all all.dim logsumexp cumsum softmax.int log_softmax.int _softmax _log_softmax
var var.dim var.correction std std.dim std.correction var_mean.dim var_mean.correction
norm.Scalar norm.ScalarOpt_dim linalg_vector_norm topk sort argsort
"""

_LINEAR = """
linear matmul mm bmm addmm baddbmm mv dot einsum outer scaled_dot_product_attention
conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding conv_transpose1d conv_transpose2d.input convolution
"""

_LAYERS = """
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d
batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit.no_stats
layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm
upsample_nearest1d upsample_nearest1d.vec upsample_nearest2d upsample_nearest2d.vec
upsample_bilinear2d upsample_bilinear2d.vec upsample_bicubic2d upsample_bicubic2d.vec
pixel_shuffle pixel_unshuffle channel_shuffle im2col embedding
"""

_SHAPES = """
view reshape _unsafe_view view_as reshape_as flatten.using_ints unflatten.int squeeze squeeze.dim squeeze.dims unsqueeze
permute transpose.int t numpy_T movedim.int movedim.intlist swapaxes swapdims expand expand_as repeat tile
repeat_interleave.self_int broadcast_to
cat concat stack hstack vstack split.Tensor split.sizes split_with_sizes chunk tensor_split.sections unbind.int unfold
narrow select.int slice.Tensor index.Tensor index_select gather roll flip diagonal tril triu
slice_scatter select_scatter
pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d meshgrid meshgrid.indexing
"""

_MADE = """
zeros ones full arange arange.start arange.start_step linspace eye scalar_tensor zeros_like ones_like full_like
new_zeros new_ones new_full
clone contiguous detach alias lift_fresh_copy to.dtype to.device to.dtype_layout to.other _to_copy type_as
"""

_RANDOM = """
dropout feature_dropout alpha_dropout native_dropout bernoulli bernoulli.p rand rand_like randn randn_like
dropout_ feature_dropout_ alpha_dropout_
"""

_DROPPED = """
_assert_scalar _assert_tensor_metadata _assert_async.msg sym_constrain_range sym_constrain_range_for_size
"""
"""Checks of the exported graph that compute nothing; shapes are checked again here."""

_SYMBOLIC = {name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "neg")}
_COMPARED = ("eq", "ne", "le", "lt", "ge", "gt", "and_", "or_")


def _full(name: str) -> str:
    return f"torch.ops.aten.{name}" if "." in name else f"torch.ops.aten.{name}.default"


def _names(*lists: str) -> frozenset[str]:
    return frozenset(_full(name) for text in lists for name in text.split())


ALLOWED = _names(_ELEMENTWISE, _IN_PLACE, _REDUCTIONS, _LINEAR, _LAYERS, _SHAPES, _MADE, _RANDOM)
"""Full names, such as "torch.ops.aten.relu.default"."""
RANDOM = _names(_RANDOM)
"""The operators that draw random numbers; those of dropout only with `train` True."""
DROPPED = _names(_DROPPED) | {f"_operator.{name}" for name in _COMPARED} | {"torch.sym_not"}
"""Operators that only check: they are left out of the network."""
REPLACED: Mapping[str, str] = {_full("detach_"): _full("detach"), _full("lift_fresh"): _full("lift_fresh_copy")}
"""Operators that another one stands in for, since they would change a tensor that is not theirs."""
SIZE = _full("sym_size.int")
"""The operator that gives one side of a tensor as a whole number."""
ARITHMETIC: Mapping[str, Callable[..., Any]] = {f"_operator.{name}": call for name, call in _SYMBOLIC.items()}
"""Arithmetic of whole numbers, as sizes need it."""


def overload(target: str) -> OpOverload | None:
    """The operator of a name of `ALLOWED`; None if this version of torch does not have it."""
    *_, name, variant = target.split(".")
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, variant, None)
    return found if isinstance(found, OpOverload) else None


def written(call: OpOverload) -> list[str]:
    """The names of the arguments that an operator writes to."""
    return [one.name for one in call._schema.arguments if one.alias_info is not None and one.alias_info.is_write]


def viewed(call: OpOverload) -> list[str]:
    """The names of the arguments in whose memory the result may lie."""
    return [one.name for one in call._schema.arguments if one.alias_info is not None]


def packed(call: OpOverload) -> bool:
    """Whether an operator returns a list or tuple of tensors instead of one tensor."""
    returns = call._schema.returns
    return len(returns) != 1 or isinstance(returns[0].real_type, torch.ListType)


def named(target: str) -> str:
    """A target in messages: without the usual prefix, and short."""
    return target.removeprefix("torch.ops.")[:80]
