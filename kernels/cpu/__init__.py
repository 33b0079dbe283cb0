"""The kernels in Numba, for the CPU."""

from .actnorm import (
    actnorm_backward,
    actnorm_forward,
    actnorm_inverse,
    actnorm_inverse_backward,
)
from .affine import affine_backward, affine_forward, affine_inverse, affine_inverse_backward
from .autoregressive import autoregressive_inverse, autoregressive_inverse_backward
from .batch_norm import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inverse,
    batch_norm_inverse_backward,
    moments,
)
from .columns import add_up, merge, merge_add, permute, split
from .conv import conv_backward, conv_forward
from .conv_weights import (
    normalized_weight,
    normalized_weight_backward,
    scaled_weight,
    scaled_weight_backward,
)
from .densities import (
    bernoulli_backward,
    bernoulli_log_prob,
    logistic_log_prob,
    logistic_log_prob_backward,
    normal_log_prob,
    normal_log_prob_backward,
)
from .diagonal import (
    diagonal_backward,
    diagonal_forward,
    diagonal_inverse,
    diagonal_inverse_backward,
)
from .drift import drift
from .gated import (
    concat_elu_backward,
    concat_elu_forward,
    gated_norm_backward,
    gated_norm_forward,
)
from .inverse_matrix import update_inverse
from .linear import linear_backward, linear_forward
from .logit import logit_backward, logit_forward, logit_inverse, logit_inverse_backward
from .masked_linear import masked_linear_backward, masked_linear_forward
from .mix import mix_backward, mix_forward
from .mixture import mixture_backward, mixture_log_prob
from .optimizer import adam_step, ema_update, global_norm
from .random import normal, uniform
from .rational_quadratic import (
    rational_quadratic_backward,
    rational_quadratic_forward,
    rational_quadratic_inverse,
    rational_quadratic_inverse_backward,
)
