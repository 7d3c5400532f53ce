"""What each operator does with channels."""

from aimgraph.widen.rules import moving, norms, pointwise, pooling, products, reducing
from aimgraph.widen.rules.registry import RULES, rule_of

__all__ = ["RULES", "rule_of"]

RULES.update(
    {
        **dict.fromkeys(
            ("view", "_unsafe_view", "_reshape_alias", "reshape", "clone", "_to_copy", "detach", "lift_fresh"),
            moving.move,
        ),
        **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"), moving.move),
        **dict.fromkeys(
            ("roll", "flip", "repeat", "rot90", "tril", "triu", "alias", "unbind", "narrow_copy"), moving.move
        ),
        **dict.fromkeys(("pixel_unshuffle", "native_channel_shuffle", "channel_shuffle"), moving.move),
        **dict.fromkeys(("split_copy", "slice_copy", "permute_copy", "expand_copy", "view_copy"), moving.move),
        **dict.fromkeys(("cat", "_cat"), moving.join),
        "stack": moving.stack,
        **dict.fromkeys(
            (
                *(
                    "relu6_",
                    "hardswish",
                    "hardswish_",
                    "mish_",
                    "gelu_",
                    "threshold_",
                    "prelu",
                    "_prelu_kernel",
                    "rrelu_",
                ),
                *(
                    "rrelu_with_noise",
                    "rrelu_with_noise_",
                    "log_sigmoid_forward",
                    "masked_fill",
                    "masked_fill_",
                    "where",
                ),
                *("polar", "complex", "dropout_"),
            ),
            pointwise.combine,
        ),
        **dict.fromkeys(("copy_", "copy", "dropout", "fill_", "bernoulli_", "bernoulli", "zero_"), pointwise.combine),
        **dict.fromkeys(("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution"), products.convolve),
        **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot"), products.matrices),
        "embedding": products.look_up,
        **dict.fromkeys(
            (
                *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
                *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
                *("_scaled_dot_product_attention_math", "_scaled_dot_product_fused_attention_overrideable"),
                "_scaled_dot_product_attention_math_for_mps",
            ),
            products.attend,
        ),
        **dict.fromkeys(
            (
                *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional"),
                *("_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm"),
                *(
                    "_batch_norm_with_update",
                    "_batch_norm_no_update",
                    "batch_norm",
                    "_batch_norm_with_update_functional",
                ),
            ),
            norms.by_channel,
        ),
        **dict.fromkeys(("native_layer_norm", "_fused_rms_norm", "rms_norm"), norms.over_axes),
        "native_group_norm": norms.over_groups,
        **dict.fromkeys(
            (
                *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
                *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "_adaptive_avg_pool2d"),
                *("_adaptive_avg_pool3d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
                *("adaptive_max_pool1d", "fractional_max_pool2d", "upsample_nearest1d", "upsample_nearest2d"),
                *("upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"),
                *("upsample_trilinear3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d"),
                *("_upsample_nearest_exact3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
                *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d"),
                *("replication_pad2d", "replication_pad3d", "max_unpool2d"),
            ),
            pooling.over_windows,
        ),
        **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"), pooling.forget),
        **dict.fromkeys(("as_strided", "as_strided_", "resize_"), moving.stride),
        "glu": moving.halve,
        "pixel_shuffle": moving.shuffle_pixels,
        "_weight_norm_interface": products.by_rows,
        "constant_pad_nd": pooling.pad,
        **dict.fromkeys(("index", "_unsafe_index"), pooling.pick),
        "index_select": pooling.take_rows,
        "native_dropout": pooling.drop,
        **dict.fromkeys(
            ("sum", "mean", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean", "logsumexp"),
            reducing.reduce,
        ),
        **dict.fromkeys(("norm", "linalg_vector_norm", "any", "all", "argmax", "argmin", "aminmax"), reducing.reduce),
        **dict.fromkeys(("_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp"), reducing.spread),
    }
)
