"""The weights of convolutions: small arrays, for which NumPy is fast enough."""

from npflow.kernels.reference.conv_weights import (
    normalized_weight as normalized_weight,
)
from npflow.kernels.reference.conv_weights import (
    normalized_weight_backward as normalized_weight_backward,
)
from npflow.kernels.reference.conv_weights import scaled_weight as scaled_weight
from npflow.kernels.reference.conv_weights import scaled_weight_backward as scaled_weight_backward
